/* A distribution that the agent reads through shared memory: HISTOGRAM of agent/bpf/histogram.py. */
#pragma once
#include "loglinear.h"

struct histogram {
    u64 sum_ns;
    u32 counts[BUCKETS];
};

static __always_inline void observe_in(struct histogram *histogram, u64 nanoseconds)
{
    u64 bucket = bucket_of(nanoseconds);
    /* clang knows that it is in range and would drop the mask that proves it to the verifier. */
    asm volatile("" : "+r"(bucket));
    __sync_fetch_and_add(&histogram->counts[bucket & (BUCKETS - 1)], 1);
    __sync_fetch_and_add(&histogram->sum_ns, nanoseconds);
}
