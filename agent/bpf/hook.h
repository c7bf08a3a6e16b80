/* What every program of this folder shares: where it hangs, and how it reads the kernel's memory. */
#pragma once

/* A function that the agent attaches to `name`, and detaches when it costs too much. */
#define HOOK(name) int hook__##name(struct bpf_raw_tracepoint_args *ctx)

#define READ(type, address)                                                  \
    ({                                                                       \
        type value_ = 0;                                                     \
        bpf_probe_read_kernel(&value_, sizeof(value_), (void *)(address));   \
        value_;                                                              \
    })
/* The same, without a call: only of an object whose type the verifier knows, in a hook that is loaded as typed. */
#define FIELD(type, object, offset) (*(type *)((u64)(object) + (offset)))
#define COUNT(field) __sync_fetch_and_add(&(field), 1)
