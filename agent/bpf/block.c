/* How long the disks take: from when the kernel made a request, so with its time in the queue, to when the disk has done it.
 *
 * The request itself carries the time of its making, so nothing has to be remembered and nothing can be forgotten. The kernel notes that
 * time unless the disk's `queue/iostats` is 0.
 *
 * Given by agent/bpf/block.py: the offsets RQ_FLAGS, RQ_BYTES, RQ_STARTED, RQ_QUEUE, QUEUE_DISK, DISK_MAJOR and DISK_MINOR of the running
 * kernel; DISKS_MAX.
 */

#define OPERATION 0xff
#define OPERATION_READ 0
#define OPERATION_WRITE 1
#define OPERATION_FLUSH 2

struct device {
    u32 major;
    u32 minor;
};

struct block {
    u64 reads;
    u64 writes;
    u64 flushes;
    u64 errors;
    struct histogram io;
    struct histogram flush;
};

BPF_TABLE("hash", struct device, u32, devices, DISKS_MAX);
BPF_F_TABLE("array", u32, struct block, blocks, DISKS_MAX, BPF_F_MMAPABLE);

static __always_inline struct block *block_of(u64 request)
{
    u64 disk = FIELD(u64, FIELD(u64, request, RQ_QUEUE), QUEUE_DISK);
    struct device device = {.major = FIELD(u32, disk, DISK_MAJOR), .minor = FIELD(u32, disk, DISK_MINOR)};
    u32 *slot = devices.lookup(&device);
    return slot ? blocks.lookup(slot) : NULL;
}

HOOK(block_rq_complete)
{
    u64 request = ctx->args[0];
    u32 done = ctx->args[2], operation = FIELD(u32, request, RQ_FLAGS) & OPERATION;
    if (operation > OPERATION_FLUSH)
        return 0;
    /* A request may be done in parts, and one that rode on a flush ends a second time, with nothing in it. */
    if (operation != OPERATION_FLUSH && (!done || done < FIELD(u32, request, RQ_BYTES)))
        return 0;
    struct block *block = block_of(request);
    if (!block)
        return 0;
    if ((u32)ctx->args[1])
        COUNT(block->errors);
    if (operation == OPERATION_READ)
        COUNT(block->reads);
    else if (operation == OPERATION_WRITE)
        COUNT(block->writes);
    else
        COUNT(block->flushes);
    u64 now_ns = bpf_ktime_get_ns(), started_ns = FIELD(u64, request, RQ_STARTED);
    if (started_ns && started_ns <= now_ns)
        observe_in(operation == OPERATION_FLUSH ? &block->flush : &block->io, now_ns - started_ns);
    return 0;
}
