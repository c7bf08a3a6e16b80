/* The buckets of agent/sketch/loglinear.py, to the bit. */
#pragma once
#define SUB_BUCKETS_LOG2 6
#define BUCKETS 2048
#define VALUE_MAX_NS ((1ULL << 37) - 1)

static __always_inline u32 bucket_of(u64 nanoseconds)
{
    u64 value = nanoseconds > VALUE_MAX_NS ? VALUE_MAX_NS : nanoseconds;
    u64 octave = value >> SUB_BUCKETS_LOG2;
    u32 shift = 0;

    /* floor(log2(octave)) by bisection: BPF has no instruction for it. */
    if (octave >> 16) { shift += 16; octave >>= 16; }
    if (octave >> 8)  { shift += 8;  octave >>= 8; }
    if (octave >> 4)  { shift += 4;  octave >>= 4; }
    if (octave >> 2)  { shift += 2;  octave >>= 2; }
    if (octave >> 1)  { shift += 1; }
    return (shift << SUB_BUCKETS_LOG2) + (u32)(value >> shift);
}
