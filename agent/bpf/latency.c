/* Request latency of the serving instances of this host, measured where the kernel sees each request come and its answer go.
 *
 * A connection is IDLE, WAITING from the first bytes of a request to the first bytes of its answer, or OVER once the server
 * has stopped sending. What the hooks mean, and what they cannot see: docs/ebpf.md.
 *
 * Given by agent/bpf/counters.py: the offsets SOCK_PORT, SOCK_NET, NET_INODE, TCP_WRITE_SEQ, TCP_RCV_NXT, TCP_COPIED_SEQ,
 * SKB_END_SEQ and SKB_FLAGS of the running kernel; SAMPLE_BELOW; INSTANCES_MAX; and which hook sees the answer go.
 */
#include "hook.h"
#include "loglinear.h"

#define CONNECTIONS_MAX 32768
#define BY_NAMESPACE 0xfffffffe /* the port is watched in some network namespaces only */
#define UNWATCHED 0xffffffff
#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_FIN_WAIT1 4
#define TCP_CLOSE 7
#define TCP_LAST_ACK 9
#define TCP_FLAG_FIN 1

enum phase { IDLE, WAITING, OVER };

struct endpoint {
    u32 netns; /* inode; 0 for any */
    u32 port;
};

struct connection {
    u64 arrived_ns;
    u64 established_ns; /* until its first request; 0 where that was not seen */
    u32 slot;
    u32 written; /* the send sequence when the request arrived: it moves with the answer */
    u8 phase;
    u8 sampled;
    u8 unread;
    u8 padding[5];
};

/* Ends come before starts, so that whoever copies it from front to back never sees more ends than starts. */
struct instance {
    u64 answered;
    u64 aborted;
    u64 started;
    u64 connections;
    u64 retransmits;
    u64 latency_sum_ns;
    u64 queue_sum_ns;
    u32 latency[BUCKETS];
    u32 queue[BUCKETS];
};

BPF_TABLE("hash", struct endpoint, u32, watched, 2 * INSTANCES_MAX);
BPF_TABLE("lru_hash", u64, struct connection, connections, CONNECTIONS_MAX);
BPF_F_TABLE("array", u32, struct instance, instances, INSTANCES_MAX, BPF_F_MMAPABLE);


static __always_inline u32 slot_of(u64 sk)
{
    struct endpoint endpoint = {.port = READ(u16, sk + SOCK_PORT)};
    u32 *found = watched.lookup(&endpoint);
    if (!found)
        return UNWATCHED;
    u32 anywhere = *found;
    endpoint.netns = READ(u32, READ(u64, sk + SOCK_NET) + NET_INODE);
    found = watched.lookup(&endpoint);
    return found ? *found : anywhere;
}

static __always_inline void observe(u32 *counts, u64 *sum_ns, u64 nanoseconds)
{
    u64 bucket = bucket_of(nanoseconds);
    /* clang knows that it is in range and would drop the mask that proves it to the verifier. */
    asm volatile("" : "+r"(bucket));
    COUNT(counts[bucket & (BUCKETS - 1)]);
    __sync_fetch_and_add(sum_ns, nanoseconds);
}

static __always_inline void start(struct connection *c, struct instance *i, u64 arrived_ns, u32 written)
{
    c->arrived_ns = arrived_ns;
    c->established_ns = 0;
    c->written = written;
    c->sampled = SAMPLE_BELOW > 0xffffffffULL || bpf_get_prandom_u32() < SAMPLE_BELOW;
    c->unread = 1;
    c->phase = WAITING;
    COUNT(i->started);
}

static __always_inline void answer(struct connection *c, struct instance *i)
{
    c->phase = IDLE;
    COUNT(i->answered);
    if (c->sampled)
        observe(i->latency, &i->latency_sum_ns, bpf_ktime_get_ns() - c->arrived_ns);
}

/* A segment arrived: the first with new data starts a request. */
HOOK(tcp_probe)
{
    u64 sk = ctx->args[0], skb = ctx->args[1];
    struct connection *c = connections.lookup(&sk);
    if (!c) {
        struct connection fresh = {.slot = slot_of(sk)};
        if (fresh.slot >= INSTANCES_MAX)
            return 0;
        connections.update(&sk, &fresh);
        c = connections.lookup(&sk);
        if (!c)
            return 0;
    }
    struct instance *i = instances.lookup(&c->slot);
    if (!i || c->phase == OVER)
        return 0;

    u32 end = READ(u32, skb + SKB_END_SEQ) - (READ(u8, skb + SKB_FLAGS) & TCP_FLAG_FIN);
    u32 expected = READ(u32, sk + TCP_RCV_NXT);
    if ((s32)(end - expected) <= 0)
        return 0; /* an acknowledgement, or data that came before */

    u32 written = READ(u32, sk + TCP_WRITE_SEQ);
    if (c->phase == WAITING) {
        if (written == c->written)
            return 0; /* more of the same request */
        answer(c, i); /* its answer made the client ask again before the hook for it ran */
    }
    /* Data is queued already, and no segment of it was seen: it came with the end of the handshake. */
    bool queued = c->established_ns && expected != READ(u32, sk + TCP_COPIED_SEQ);
    start(c, i, queued ? c->established_ns : bpf_ktime_get_ns(), written);
    return 0;
}

/* The server read. Data that no segment hook saw came with the end of the handshake. */
HOOK(tcp_rcv_space_adjust)
{
    u64 sk = ctx->args[0];
    struct connection *c = connections.lookup(&sk);
    if (!c)
        return 0;
    struct instance *i = instances.lookup(&c->slot);
    if (!i)
        return 0;
    if (c->phase == IDLE && c->established_ns)
        start(c, i, c->established_ns, READ(u32, sk + TCP_WRITE_SEQ));
    if (c->phase == WAITING && c->unread) {
        c->unread = 0;
        if (c->sampled)
            observe(i->queue, &i->queue_sum_ns, bpf_ktime_get_ns() - c->arrived_ns);
    }
    return 0;
}

static __always_inline void sent(u64 sk)
{
    struct connection *c = connections.lookup(&sk);
    if (!c || c->phase != WAITING)
        return;
#ifdef SENT_BY_SOCK_SEND_LENGTH
    /* It runs after the bytes have left: by now the client may have answered them with its next request. */
    if (READ(u32, sk + TCP_WRITE_SEQ) == c->written)
        return;
#endif
    struct instance *i = instances.lookup(&c->slot);
    if (i)
        answer(c, i);
}

#if defined(SENT_BY_TCP_SENDMSG_LOCKED)
HOOK(tcp_sendmsg_locked)
{
    sent(ctx->args[0]);
    return 0;
}
#elif defined(SENT_BY_SOCK_SEND_LENGTH)
HOOK(sock_send_length)
{
    if ((s32)ctx->args[1] > 0)
        sent(ctx->args[0]);
    return 0;
}
#else
int kprobe__tcp_sendmsg(struct pt_regs *ctx)
{
    sent(PT_REGS_PARM1(ctx));
    return 0;
}
#endif

static __always_inline void end_connection(u64 sk, int to)
{
    struct connection *c = connections.lookup(&sk);
    if (!c)
        return;
    if (c->phase == WAITING) {
        struct instance *i = instances.lookup(&c->slot);
        if (i)
            COUNT(i->aborted);
    }
    c->phase = OVER;
    if (to == TCP_CLOSE)
        connections.delete(&sk);
}

static __always_inline void open_connection(u64 sk, int from)
{
    struct connection fresh = {.slot = slot_of(sk), .established_ns = bpf_ktime_get_ns()};
    struct instance *i = instances.lookup(&fresh.slot);
    if (!i)
        return;
    end_connection(sk, TCP_CLOSE); /* of an earlier socket at this address, should its end have been missed */
    if (from == TCP_SYN_SENT)
        fresh.slot = UNWATCHED; /* a client that was given the port of a server */
    else
        COUNT(i->connections);
    connections.update(&sk, &fresh);
}

HOOK(inet_sock_set_state)
{
    int from = ctx->args[1], to = ctx->args[2];
    if (to == TCP_ESTABLISHED)
        open_connection(ctx->args[0], from);
    else if (to == TCP_FIN_WAIT1 || to == TCP_LAST_ACK || to == TCP_CLOSE)
        end_connection(ctx->args[0], to);
    return 0;
}

HOOK(tcp_retransmit_skb)
{
    u64 sk = ctx->args[0];
    struct connection *c = connections.lookup(&sk);
    struct instance *i = c ? instances.lookup(&c->slot) : NULL;
    if (i)
        COUNT(i->retransmits);
    return 0;
}
