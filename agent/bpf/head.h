/* What the first bytes of a send say: the head of an HTTP/1 answer, something else, or nothing that can be read.
 *
 * No byte outlives the run of the hook. Of a head that is sent in pieces there remain how much of it matched, and its digits.
 * Given by agent/bpf/layout.py: MSG_ITER_* and the ITER_* of the running kernel.
 */
#pragma once
#include "hook.h"

#define HEAD_BYTES 12 /* "HTTP/1.1 200" */
#define HEAD_START 0x312e312f50545448ULL /* "HTTP/1.1" */
#define PREFIX_BYTES 7 /* up to the minor version */
#define PIECES_MAX 16
#define TLS_FIRST 0x14
#define TLS_LAST 0x17
#define TLS_MAJOR 3
#define HTTP2_SETTINGS 4
#define HTTP2_FRAME_BYTES 9

enum said { SAYS_HEAD, SAYS_PART_OF_HEAD, SAYS_TLS, SAYS_HTTP2, SAYS_OTHER, SAYS_NOTHING };

/* The first bytes, the very first one lowest. */
struct text {
    u64 low;
    u64 high;
    u64 length;
};

/* How far a head was recognised in the sends before. */
struct progress {
    u16 digits; /* of its status, as many as there were */
    u8 matched;
};

static __always_inline u8 byte_at(struct text *text, u32 at)
{
    return at < 8 ? text->low >> (8 * at) : text->high >> (8 * (at - 8));
}

static __always_inline bool is_digit_at(struct text *text, u32 at)
{
    u8 byte = byte_at(text, at);
    return text->length <= at || (byte >= '0' && byte <= '9');
}

/* As much of it as there is. */
static __always_inline bool is_head(struct text *text)
{
    u64 prefix = text->length < PREFIX_BYTES ? text->length : PREFIX_BYTES;
    u64 mask = (1ULL << (8 * prefix)) - 1;
    if ((text->low ^ HEAD_START) & mask)
        return false;
    if (text->length > 8 && byte_at(text, 8) != ' ')
        return false;
    return is_digit_at(text, 7) && is_digit_at(text, 9) && is_digit_at(text, 10) && is_digit_at(text, 11);
}

static __always_inline enum said recognise(struct text *text)
{
    if (is_head(text))
        return text->length >= HEAD_BYTES ? SAYS_HEAD : SAYS_PART_OF_HEAD;
    u8 first = byte_at(text, 0);
    if (text->length >= 2 && first >= TLS_FIRST && first <= TLS_LAST && byte_at(text, 1) == TLS_MAJOR)
        return SAYS_TLS;
    /* The first frame of an HTTP/2 server: length, SETTINGS, flags, stream 0. */
    if (text->length >= HTTP2_FRAME_BYTES && !first && byte_at(text, 3) == HTTP2_SETTINGS && !(text->low >> 40) &&
        !byte_at(text, 8))
        return SAYS_HTTP2;
    return SAYS_OTHER;
}

static __always_inline void append(struct text *text, struct text *more)
{
    u64 bits = 8 * text->length;
    if (!bits) {
        text->low = more->low;
        text->high = more->high;
    } else if (bits < 64) {
        text->low |= more->low << bits;
        text->high |= more->low >> (64 - bits) | more->high << bits;
    } else {
        text->high |= more->low << (bits - 64);
    }
    text->length += more->length;
    if (text->length > HEAD_BYTES)
        text->length = HEAD_BYTES;
}

/* At most HEAD_BYTES from the address. Returns false where they cannot be read. */
static __always_inline bool read_piece(struct text *text, u64 address, u64 length)
{
    text->low = text->high = 0;
    text->length = length < HEAD_BYTES ? length : HEAD_BYTES;
    if (length >= HEAD_BYTES)
        return !bpf_probe_read_user(text, HEAD_BYTES, (void *)address);
    u32 some = length;
    /* clang knows that it is less and would drop the mask that proves it to the verifier. */
    asm volatile("" : "+r"(some));
    return !bpf_probe_read_user(text, some & 15, (void *)address);
}

struct piece {
    u64 address;
    u64 length;
};

static __always_inline bool read_text(struct text *text, u64 message)
{
    u8 type = FIELD(u8, message, MSG_ITER_TYPE);
    u64 skip = FIELD(u64, message, MSG_ITER_OFFSET);
#ifdef ITER_START_IS_TYPED
    u64 start = READ(u64, message + MSG_ITER_START); /* the verifier would not let such a pointer be added to */
#else
    u64 start = FIELD(u64, message, MSG_ITER_START);
#endif
    if (type == ITER_UBUF)
        return read_piece(text, start + skip, FIELD(u64, message, MSG_ITER_COUNT));
    if (type != ITER_IOVEC)
        return false; /* a file, or memory of the kernel */
    u64 pieces = FIELD(u64, message, MSG_ITER_PIECES);
    for (u32 i = 0; i < PIECES_MAX && i < pieces && text->length < HEAD_BYTES; i++) {
        struct piece piece = {};
        struct text more;
        bpf_probe_read_kernel(&piece, sizeof(piece), (void *)(start + i * sizeof(piece)));
        if (piece.length > skip) {
            if (!read_piece(&more, piece.address + skip, piece.length - skip))
                return false;
            append(text, &more);
        }
        skip = 0;
    }
    return text->length > 0;
}

/* The part of a head that went before, as text again. */
static __always_inline struct text recall(struct progress *head)
{
    struct text text = {.low = HEAD_START, .high = ' ' | (u64)head->digits << 8, .length = head->matched};
    if (text.length < 8)
        text.low &= (1ULL << (8 * text.length)) - 1;
    if (text.length < 9)
        text.high = 0;
    return text;
}

/* What the message that is about to be sent says; `head` is brought up to date, and is the status where it is complete. */
static __always_inline enum said look_into(u64 message, struct progress *head, u32 *status)
{
    struct text text = {};
    if (!read_text(&text, message))
        return SAYS_NOTHING;
    if (head->matched) {
        struct text whole = recall(head);
        append(&whole, &text);
        if (is_head(&whole))
            text = whole;
    }
    enum said said = recognise(&text);
    bool is_part = said == SAYS_PART_OF_HEAD;
    head->matched = is_part ? text.length : 0;
    head->digits = is_part ? text.high >> 8 : 0;
    if (said == SAYS_HEAD)
        *status = (byte_at(&text, 9) - '0') * 100 + (byte_at(&text, 10) - '0') * 10 + (byte_at(&text, 11) - '0');
    return said;
}
