/* Who was killed because memory ran out, in which cgroup, and below which processes it stood.
 *
 * The kernel marks one victim at a time (it holds oom_lock), so the journal has one writer.
 *
 * Given by agent/bpf/oom.py: offsets of the running kernel, VICTIMS_MAX, ANCESTORS_MAX, CGROUP_DEPTH_MAX and CGROUP_NAME_BYTES.
 */

#define COMM_BYTES 16
#define CONTROLLERS_MAX 16
#define MEMORY_NAME 0x0079726f6d656dULL /* "memory", little endian, with the byte that ends it */
#define USER_SPACE_MAX 0xffffffffULL

struct victim {
    u64 started_ns;
    u32 pid;
    u32 ancestors[ANCESTORS_MAX];
    u32 padding;
    char comm[COMM_BYTES];
    char cgroup[CGROUP_DEPTH_MAX][CGROUP_NAME_BYTES]; /* leaf first */
};

struct journal {
    u64 total;
    struct victim last[VICTIMS_MAX];
};

BPF_F_TABLE("array", u32, struct journal, journal, 1, BPF_F_MMAPABLE);

static __always_inline u64 memory_group(u64 task)
{
    u64 groups = READ(u64, task + TASK_CGROUPS);
    for (int i = 0; i < CONTROLLERS_MAX; i++) {
        u64 state = READ(u64, groups + CSS_SET_SUBSYS + 8 * i);
        u64 name = READ(u64, READ(u64, state + CSS_SUBSYS) + SUBSYS_NAME);
        if (state && (READ(u64, name) & 0x00ffffffffffffffULL) == MEMORY_NAME)
            return READ(u64, state + CSS_CGROUP);
    }
    return 0;
}

static __always_inline void describe(struct victim *victim, u64 task)
{
    u64 leader = READ(u64, task + TASK_LEADER);
    victim->pid = READ(u32, task + TASK_TGID);
    victim->started_ns = READ(u64, leader + TASK_STARTED);
    bpf_probe_read_kernel_str(victim->comm, sizeof(victim->comm), (void *)(leader + TASK_COMM));
    u64 above = leader;
    for (int i = 0; i < ANCESTORS_MAX; i++) {
        above = READ(u64, above + TASK_PARENT);
        victim->ancestors[i] = READ(u32, above + TASK_TGID);
    }
    u64 node = READ(u64, memory_group(task) + CGROUP_NODE);
    for (int i = 0; i < CGROUP_DEPTH_MAX; i++) {
        victim->cgroup[i][0] = 0;
        bpf_probe_read_kernel_str(victim->cgroup[i], CGROUP_NAME_BYTES, (void *)READ(u64, node + NODE_NAME));
        /* The parent has had two names, and always stood right before the name. */
        node = READ(u64, node + NODE_NAME - 8);
    }
}

HOOK(mark_victim)
{
    u32 zero = 0;
    struct journal *j = journal.lookup(&zero);
    if (!j)
        return 0;
    u64 at = j->total;
    asm volatile("" : "+r"(at));
    struct victim *victim = &j->last[at & (VICTIMS_MAX - 1)];
    /* Up to Linux 6.7 the hook gives the number of a thread, and the task is known only where it is the one that asked for memory. */
    u64 task = ctx->args[0];
    if (task <= USER_SPACE_MAX) {
        u32 tid = task;
        task = (u32)bpf_get_current_pid_tgid() == tid ? bpf_get_current_task() : 0;
        victim->pid = tid;
        victim->started_ns = 0;
        victim->comm[0] = victim->cgroup[0][0] = 0;
        victim->ancestors[0] = 0;
    }
    if (task)
        describe(victim, task);
    asm volatile("" ::: "memory");
    j->total = at + 1;
    return 0;
}
