/* What the request probes keep: of each connection, of each instance, of each remote side; and which of them are watched.
 *
 * Given by agent/bpf/layout.py: SOCK_*, NET_INODE and TCP_IS_MULTIPATH of the running kernel, INSTANCES_MAX, REMOTES_MAX.
 */
#pragma once
#include "hook.h"
#include "head.h"
#include "loglinear.h"

#define CONNECTIONS_MAX 32768
#define BY_NAMESPACE 0xfffffffe /* the port is watched in some network namespaces only */
#define UNWATCHED 0xffffffff
#define NO_EPOCH 0xffffffff
#define FLUSH_ANSWERS 32
#define FLUSH_NS 1000000000ULL
#define AF_INET 2

/* Waiting: from the first bytes of a request to the first bytes of its answer. Over: the server has stopped sending. */
enum phase { IDLE, WAITING, OVER, UNMEASURED, OF_A_CLIENT };

struct endpoint {
    u32 netns; /* inode; 0 for any */
    u32 port;
};

/* It lives and dies with its socket. */
struct connection {
    u64 arrived_ns;     /* of the request that waits, or was answered last */
    u64 read_ns;        /* when the server first read of it; 0: not yet, or not seen */
    u64 established_ns; /* until its first request; 0 where that was not seen */
    u64 first_sent_ns;  /* of an answer whose head is not complete yet; else 0 */
    u64 answer_of_ns;   /* when the request arrived whose answer is being sent; 0: not to be measured */
    u64 last_sent_ns;   /* of that answer, so far */
    u64 flushed_ns;
    u64 latency_sum_ns; /* this and the next two: not yet in `remotes` */
    u32 answered;
    u32 errors;
    u32 slot;
    u32 generation;
    u32 epoch;   /* in which it was counted into `tracked` */
    u32 begins;  /* the sequence number at which the request begins */
    u32 looked_at; /* the sequence number at which the latest send began */
    struct progress head;
    u8 phase;
    u8 is_http;  /* an HTTP/1 head was seen */
    u8 overlaps; /* requests and answers were seen not to take turns */
    u8 unsure;   /* its present request may have begun before it was watched */
    u8 strikes;
    u8 has_looked;
};

/* Ends come before starts, so that whoever copies it from front to back never sees more ends than starts. */
struct instance {
    u64 answered;
    u64 aborted;
    u64 dropped; /* starts that were none, or whose answer cannot be known */
    u64 started;
    u64 connections;
    u64 retransmits;
    u64 errors;
    u64 client_errors;
    u64 unmeasured;
    u64 http2;
    u64 tls;
    u64 other;
    u64 generation; /* written by the agent: connections of another one are not known any more */
    u64 latency_sum_ns;
    u64 queue_sum_ns;
    u64 duration_sum_ns;
    u32 latency[BUCKETS];
    u32 queue[BUCKETS];
    u32 duration[BUCKETS];
};

/* What the agent says, and what is counted of the whole host. */
struct control {
    u64 sample_below;   /* of 2^32 */
    u64 queue_since_ns; /* the reads of requests that arrived before were perhaps not seen */
    u64 epoch;          /* changes when connections may have closed unseen */
    s64 tracked;
    u64 untracked; /* connections there was no room for */
};

struct remote {
    u32 slot;
    u8 address[16]; /* IPv4 as ::ffff:a.b.c.d */
};

struct tally {
    u64 answered;
    u64 errors;
    u64 latency_sum_ns;
};

BPF_TABLE("hash", struct endpoint, u32, watched, 2 * INSTANCES_MAX);
BPF_TABLE("lru_hash", struct remote, struct tally, remotes, REMOTES_MAX);
BPF_SK_STORAGE(connections, struct connection);
BPF_F_TABLE("array", u32, struct instance, instances, INSTANCES_MAX, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct control, controls, 1, BPF_F_MMAPABLE);
/* A bit for each port that is watched in any namespace: all that the other sockets of the host pay for. */
BPF_F_TABLE("array", u32, u64, ports, 1024, BPF_F_MMAPABLE);

static __always_inline struct control *control(void)
{
    u32 only = 0;
    return controls.lookup(&only);
}

static __always_inline bool is_watched(u64 sk)
{
    u32 port = FIELD(u16, sk, SOCK_PORT), word = port >> 6;
    u64 *bits = ports.lookup(&word);
    return bits && *bits >> (port & 63) & 1;
}

static __always_inline struct connection *known(u64 sk)
{
    return is_watched(sk) ? connections.sk_storage_get((void *)sk, 0, 0) : NULL;
}

static __always_inline struct instance *instance_of(struct connection *c)
{
    u32 slot = c->slot;
    struct instance *i = instances.lookup(&slot);
    return i && (u32)i->generation == c->generation ? i : NULL;
}

static __always_inline u32 slot_of(u64 sk)
{
    struct endpoint endpoint = {.port = FIELD(u16, sk, SOCK_PORT)};
    u32 *found = watched.lookup(&endpoint);
    if (!found)
        return UNWATCHED;
    u32 anywhere = *found;
    endpoint.netns = FIELD(u32, FIELD(u64, sk, SOCK_NET), NET_INODE);
    found = watched.lookup(&endpoint);
    return found ? *found : anywhere;
}

/* A part of a Multipath TCP connection, whose sends go by another way. */
static __always_inline bool is_multipath(u64 tcp)
{
#ifdef TCP_IS_MULTIPATH
    return FIELD(u8, tcp, TCP_IS_MULTIPATH);
#else
    return false;
#endif
}

/* A connection that is new, or that is not known any more. NULL where it cannot be watched, or there is no room. */
static __always_inline struct connection *adopt(u64 sk, u64 tcp)
{
    if (is_multipath(tcp))
        return NULL;
    u32 slot = slot_of(sk);
    struct instance *i = instances.lookup(&slot);
    struct control *now = control();
    if (!i || !now)
        return NULL;
    struct connection *c = connections.sk_storage_get((void *)sk, 0, 0);
    bool is_counted = c && c->epoch == (u32)now->epoch;
    if (!is_counted && now->tracked >= CONNECTIONS_MAX) {
        COUNT(now->untracked);
        return NULL;
    }
    c = connections.sk_storage_get((void *)sk, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
    if (!c) {
        COUNT(now->untracked);
        return NULL;
    }
    if (!is_counted)
        COUNT(now->tracked);
    *c = (struct connection){.slot = slot, .generation = i->generation, .epoch = now->epoch};
    return c;
}

/* The connection has closed. */
static __always_inline void forget(struct connection *c)
{
    struct control *now = control();
    if (now && c->epoch == (u32)now->epoch)
        __sync_fetch_and_add(&now->tracked, -1);
    c->epoch = NO_EPOCH;
    c->phase = OVER;
}

/* Hand over to `remotes` what it has gathered. */
static __always_inline void flush(u64 sk, struct connection *c)
{
    if (!c->answered)
        return;
    union {
        struct remote remote;
        u32 words[5];
    } key = {.remote = {.slot = c->slot}};
    if (FIELD(u16, sk, SOCK_FAMILY) == AF_INET) {
        key.words[3] = 0xffff0000;
        key.words[4] = FIELD(u32, sk, SOCK_ADDRESS4);
    } else {
        key.words[1] = FIELD(u32, sk, SOCK_ADDRESS6);
        key.words[2] = FIELD(u32, sk, SOCK_ADDRESS6 + 4);
        key.words[3] = FIELD(u32, sk, SOCK_ADDRESS6 + 8);
        key.words[4] = FIELD(u32, sk, SOCK_ADDRESS6 + 12);
    }
    struct tally none = {};
    struct tally *tally = remotes.lookup_or_try_init(&key.remote, &none);
    if (tally) {
        __sync_fetch_and_add(&tally->answered, c->answered);
        __sync_fetch_and_add(&tally->errors, c->errors);
        __sync_fetch_and_add(&tally->latency_sum_ns, c->latency_sum_ns);
    }
    c->answered = c->errors = 0;
    c->latency_sum_ns = 0;
}
