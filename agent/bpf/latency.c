/* The requests of the serving instances of this host, measured where the kernel sees each come and its answer go.
 *
 * What the hooks mean, and what they cannot see: docs/ebpf.md. Requests and answers on a connection take turns, or it is not
 * measured: every doubt ends in "counted, but without a latency", never in a wrong one.
 *
 * Given by agent/bpf/layout.py, besides what the headers need: TCP_WRITE_SEQ, TCP_RCV_NXT, TCP_COPIED_SEQ, SKB_END_SEQ, SKB_FLAGS.
 */
#include "request.c"

#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_FIN_WAIT1 4
#define TCP_CLOSE 7
#define TCP_LAST_ACK 9
#define TCP_FLAG_FIN 1
#define SWITCHING_PROTOCOLS 101
#define STRIKES_MAX 3

/* A segment arrived: the first with new data starts a request, later ones belong to it. */
HOOK(tcp_probe)
{
    u64 sk = ctx->args[0], skb = ctx->args[1];
    if (!is_watched(sk))
        return 0;
    struct connection *c = connections.sk_storage_get((void *)sk, 0, 0);
    struct instance *i = c ? instance_of(c) : NULL;
    if (c && (c->phase == OF_A_CLIENT || (i && c->phase != IDLE)))
        return 0;
    struct tcp_sock *tcp = bpf_skc_to_tcp_sock((void *)sk);
    if (!tcp)
        return 0;
    u32 end = FIELD(u32, skb, SKB_END_SEQ) - (FIELD(u8, skb, SKB_FLAGS) & TCP_FLAG_FIN);
    u32 expected = FIELD(u32, tcp, TCP_RCV_NXT);
    if ((s32)(end - expected) <= 0)
        return 0; /* an acknowledgement, or data that came before */

    if (!i) {
        c = adopt(sk, (u64)tcp);
        i = c ? instance_of(c) : NULL;
        if (!i)
            return 0;
        c->unsure = 1;
    }
    /* Data that no segment hook saw: it came with the end of the handshake. */
    if (c->established_ns && expected != c->begins)
        start(c, i, c->established_ns, c->begins);
    else
        start(c, i, bpf_ktime_get_ns(), expected);
    return 0;
}

/* The server read. Data that no segment hook saw came with the end of the handshake. */
HOOK(tcp_rcv_space_adjust)
{
    u64 sk = ctx->args[0];
    struct connection *c = known(sk);
    if (!c || c->phase > WAITING || (c->phase == IDLE ? !c->established_ns : c->read_ns))
        return 0;
    struct instance *i = instance_of(c);
    if (!i)
        return 0;
    if (c->phase == IDLE)
        start(c, i, c->established_ns, c->begins);
    c->read_ns = bpf_ktime_get_ns();
    return 0;
}

/* A send that is no head of an HTTP/1 answer. */
static __always_inline void sent_other(struct connection *c, struct instance *i, enum said said)
{
    if (c->is_http) {
        if (c->phase == WAITING)
            c->overlaps = 1; /* the answer before was not complete when this request came */
        c->last_sent_ns = c->answer_of_ns ? bpf_ktime_get_ns() : 0;
    } else if (said == SAYS_TLS) {
        give_up(c, i, &i->tls);
    } else if (said == SAYS_HTTP2) {
        give_up(c, i, &i->http2);
    } else if (!c->unsure) {
        give_up(c, i, &i->other);
    } else if (c->phase == WAITING) {
        /* Perhaps the rest of an answer that began before it was watched. */
        if (++c->strikes == STRIKES_MAX) {
            give_up(c, i, &i->other);
        } else {
            COUNT(i->dropped);
            c->phase = IDLE;
        }
    }
}

static __always_inline void sent_head(u64 sk, u64 tcp, struct connection *c, struct instance *i, u32 status)
{
    c->is_http = 1;
    u64 sent_ns = c->first_sent_ns ? c->first_sent_ns : bpf_ktime_get_ns();
    c->first_sent_ns = 0;
    if (status < 200 && status != SWITCHING_PROTOCOLS)
        return; /* the answer is still to come */
    u32 read_to = FIELD(u32, tcp, TCP_COPIED_SEQ);
    /* A request that came with the handshake, where reads are not watched. */
    if (c->phase == IDLE && c->established_ns && read_to != c->begins)
        start(c, i, c->established_ns, c->begins);
    if (c->phase == WAITING && (s32)(read_to - c->begins) > 0)
        answer(sk, c, i, status, sent_ns);
    else
        answer_out_of_turn(sk, c, i, status);
    if (status == SWITCHING_PROTOCOLS)
        give_up(c, i, &i->other);
}

/* Bytes are about to go. */
HOOK(tcp_sendmsg_locked)
{
    u64 sk = ctx->args[0], message = ctx->args[1];
    struct connection *c = known(sk);
    if (!c || c->phase > WAITING)
        return 0;
    struct instance *i = instance_of(c);
    struct tcp_sock *tcp = bpf_skc_to_tcp_sock((void *)sk);
    if (!i || !tcp)
        return 0;
    u32 written = FIELD(u32, tcp, TCP_WRITE_SEQ);
    if (c->looked_at == written && c->has_looked)
        return 0; /* the same bytes again: there was no room for them */
    c->looked_at = written;
    c->has_looked = 1;
    u32 status = 0;
    enum said said = look_into(message, &c->head, &status);
    if (said == SAYS_HEAD) {
        sent_head(sk, (u64)tcp, c, i, status);
    } else if (said == SAYS_PART_OF_HEAD) {
        if (!c->first_sent_ns)
            c->first_sent_ns = bpf_ktime_get_ns();
    } else {
        c->first_sent_ns = 0;
        sent_other(c, i, said);
    }
    return 0;
}

static __always_inline void end_connection(u64 sk, int to)
{
    struct connection *c = connections.sk_storage_get((void *)sk, 0, 0);
    struct control *now = control();
    if (!c || !now)
        return;
    struct instance *i = instance_of(c);
    if (i && c->phase <= WAITING) {
        settle(c, i, now);
        if (c->phase == WAITING)
            COUNT(i->aborted);
    }
    if (i)
        flush(sk, c);
    if (c->phase <= WAITING)
        c->phase = OVER;
    if (to == TCP_CLOSE)
        forget(c);
}

static __always_inline void open_connection(u64 sk, int from)
{
    if (!is_watched(sk))
        return;
    struct tcp_sock *tcp = bpf_skc_to_tcp_sock((void *)sk);
    if (!tcp)
        return;
    struct connection *c = adopt(sk, (u64)tcp);
    struct instance *i = c ? instance_of(c) : NULL;
    if (!i)
        return;
    if (from == TCP_SYN_SENT) {
        c->phase = OF_A_CLIENT; /* a client that was given the port of a server */
        return;
    }
    c->established_ns = bpf_ktime_get_ns();
    c->begins = FIELD(u32, tcp, TCP_RCV_NXT);
    COUNT(i->connections);
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
    struct connection *c = known(ctx->args[0]);
    struct instance *i = c && c->phase != OF_A_CLIENT ? instance_of(c) : NULL;
    if (i)
        COUNT(i->retransmits);
    return 0;
}
