/* Round trips and resets of the connections to serving instances, by their local port and network namespace.
 *
 * Given by agent/bpf/tcp.py: the offsets SOCK_PORT, SOCK_STATE, SOCK_NET, NET_INODE, INET_SPORT and TCP_SRTT of the running kernel;
 * ENDPOINTS_MAX; READS_A_SAMPLE, a power of two.
 */

#define TCP_ESTABLISHED 1
#define TCP_SYN_RECV 3
#define TCP_CLOSE 7
#define SRTT_SHIFT 3 /* the kernel keeps eight times the smoothed time, in microseconds */

struct tcp_endpoint {
    u32 netns; /* inode; 0 for any */
    u32 port;
};

struct connections {
    u64 resets_sent;
    u64 resets_received;
    struct histogram rtt;
    struct histogram handshake;
};

BPF_TABLE("hash", struct tcp_endpoint, u32, endpoints, 2 * ENDPOINTS_MAX);
BPF_F_TABLE("array", u32, struct connections, tcp, ENDPOINTS_MAX, BPF_F_MMAPABLE);

static __always_inline struct connections *connections_of(u64 sk)
{
    struct tcp_endpoint endpoint = {.port = READ(u16, sk + SOCK_PORT)};
    /* A socket that is closed has given its number back. What is no full socket never has, and has no `inet_sport` either. */
    if (!endpoint.port && READ(u8, sk + SOCK_STATE) == TCP_CLOSE)
        endpoint.port = bpf_ntohs(READ(u16, sk + INET_SPORT));
    u32 *slot = endpoints.lookup(&endpoint);
    if (!slot)
        return NULL;
    u32 anywhere = *slot;
    endpoint.netns = READ(u32, READ(u64, sk + SOCK_NET) + NET_INODE);
    slot = endpoints.lookup(&endpoint);
    if (slot)
        anywhere = *slot;
    return tcp.lookup(&anywhere);
}

static __always_inline void observe_srtt(u64 sk, struct histogram *histogram)
{
    u64 srtt_us = READ(u32, sk + TCP_SRTT) >> SRTT_SHIFT;
    if (srtt_us)
        observe_in(histogram, srtt_us * 1000);
}

HOOK(inet_sock_set_state)
{
    u64 sk = ctx->args[0];
    if ((int)ctx->args[1] != TCP_SYN_RECV || (int)ctx->args[2] != TCP_ESTABLISHED)
        return 0;
    struct connections *c = connections_of(sk);
    if (c)
        observe_srtt(sk, &c->handshake);
    return 0;
}

/* A server read. */
HOOK(tcp_rcv_space_adjust)
{
    if (bpf_get_prandom_u32() & (READS_A_SAMPLE - 1))
        return 0;
    u64 sk = ctx->args[0];
    struct connections *c = connections_of(sk);
    if (c)
        observe_srtt(sk, &c->rtt);
    return 0;
}

HOOK(tcp_send_reset)
{
    u64 sk = ctx->args[0];
    struct connections *c = sk ? connections_of(sk) : NULL;
    if (c)
        COUNT(c->resets_sent);
    return 0;
}

HOOK(tcp_receive_reset)
{
    struct connections *c = connections_of(ctx->args[0]);
    if (c)
        COUNT(c->resets_received);
    return 0;
}
