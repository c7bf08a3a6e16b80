/* What every program of this folder shares: where it hangs, and how it reads the kernel's memory. */
#pragma once

/* A function that the agent attaches to the raw tracepoint `name`, and detaches when it costs too much. */
#define HOOK(name) int hook__##name(struct bpf_raw_tracepoint_args *ctx)

#define READ(type, address)                                                  \
    ({                                                                       \
        type value_ = 0;                                                     \
        bpf_probe_read_kernel(&value_, sizeof(value_), (void *)(address));   \
        value_;                                                              \
    })
#define COUNT(field) __sync_fetch_and_add(&(field), 1)
