/* The life of a request: it starts, it is answered, its answer is complete. And what ends the measuring of a connection. */
#include "connection.c"

static __always_inline void observe(u32 *counts, u64 *sum_ns, u64 nanoseconds)
{
    u64 bucket = bucket_of(nanoseconds);
    /* clang knows that it is in range and would drop the mask that proves it to the verifier. */
    asm volatile("" : "+r"(bucket));
    COUNT(counts[bucket & (BUCKETS - 1)]);
    __sync_fetch_and_add(sum_ns, nanoseconds);
}

static __always_inline bool is_sampled(struct control *now)
{
    return now->sample_below > 0xffffffffULL || bpf_get_prandom_u32() < now->sample_below;
}

static __always_inline void start(struct connection *c, struct instance *i, u64 arrived_ns, u32 begins)
{
    c->arrived_ns = arrived_ns;
    c->read_ns = 0;
    c->established_ns = 0;
    c->begins = begins;
    c->phase = WAITING;
    COUNT(i->started);
}

/* The answer before is complete: bytes of the next one go, or none will. */
static __always_inline void settle(struct connection *c, struct instance *i, struct control *now)
{
    if (c->answer_of_ns && is_sampled(now))
        observe(i->duration, &i->duration_sum_ns, c->last_sent_ns - c->answer_of_ns);
    c->answer_of_ns = 0;
}

static __always_inline void count_answer(u64 sk, struct connection *c, struct instance *i, u32 status, u64 sent_ns)
{
    COUNT(i->answered);
    c->answered++;
    if (status >= 500) {
        COUNT(i->errors);
        c->errors++;
    } else if (status >= 400) {
        COUNT(i->client_errors);
    }
    if (c->answered >= FLUSH_ANSWERS || sent_ns - c->flushed_ns > FLUSH_NS) {
        c->flushed_ns = sent_ns;
        flush(sk, c);
    }
}

/* The first bytes of the answer to the request that waits. */
static __always_inline void answer(u64 sk, struct connection *c, struct instance *i, u32 status, u64 sent_ns)
{
    struct control *now = control();
    if (!now)
        return;
    settle(c, i, now);
    c->phase = IDLE;
    if (c->overlaps || c->unsure) {
        COUNT(i->unmeasured);
    } else {
        u64 latency_ns = sent_ns - c->arrived_ns;
        c->latency_sum_ns += latency_ns;
        c->answer_of_ns = c->arrived_ns;
        c->last_sent_ns = sent_ns;
        if (is_sampled(now)) {
            observe(i->latency, &i->latency_sum_ns, latency_ns);
            if (c->read_ns && c->arrived_ns >= now->queue_since_ns)
                observe(i->queue, &i->queue_sum_ns, c->read_ns - c->arrived_ns);
        }
    }
    c->unsure = 0;
    count_answer(sk, c, i, status, sent_ns);
}

/* The head of an answer to a request that was not told apart from another: proof that they do not take turns here. */
static __always_inline void answer_out_of_turn(u64 sk, struct connection *c, struct instance *i, u32 status)
{
    struct control *now = control();
    if (!now)
        return;
    settle(c, i, now);
    c->overlaps = 1;
    COUNT(i->started);
    COUNT(i->unmeasured);
    count_answer(sk, c, i, status, bpf_ktime_get_ns());
}

/* Nothing of it can be known from here on. */
static __always_inline void give_up(struct connection *c, struct instance *i, u64 *reason)
{
    if (c->phase == WAITING)
        COUNT(i->dropped);
    c->answer_of_ns = 0;
    c->phase = UNMEASURED;
    COUNT(*reason);
}
