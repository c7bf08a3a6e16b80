/* When the threads of serving instances wait for a core, run, and sleep.
 *
 * A process is watched from when the agent names it, its children from their fork. A task that is not watched costs one reading of its
 * identity and one lookup. Times from before `valid_from` are not used: while a hook was off, threads moved on unseen.
 *
 * Given by agent/bpf/scheduler.py: the offsets TASK_PID, TASK_TGID and TASK_STATE of the running kernel; SCHEDULED_MAX; PROCESSES_MAX; CPUS.
 */

#define THREADS_MAX 16384
#define TASK_UNINTERRUPTIBLE 2
#define TASK_DEAD 0x80

enum phase { RUNNING, QUEUED, ASLEEP, ASLEEP_FOR_GOOD };

struct identity {
    u32 tid;
    u32 process;
};

struct thread {
    u64 since_ns;
    u32 phase;
    u32 padding;
};

/* The watched thread that a core runs. */
struct core {
    u64 since_ns; /* 0: it runs none */
    u32 instance;
    u32 tid;
};

struct scheduled {
    u64 on_cpu_ns;
    u64 uninterruptible_ns;
    u64 preemptions;
    u64 migrations;
    u64 lost; /* a thread found no room: its waits are not known */
    struct histogram run_queue;
    struct histogram off_cpu;
};

BPF_TABLE("hash", u32, u32, processes, PROCESSES_MAX);
BPF_TABLE("hash", u32, struct thread, threads, THREADS_MAX);
BPF_F_TABLE("array", u32, struct core, cores, CPUS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct scheduled, scheduled, SCHEDULED_MAX, BPF_F_MMAPABLE);
BPF_TABLE("array", u32, u64, valid_from, 1);

static __always_inline struct identity identity_of(u64 task)
{
    return (struct identity){.tid = FIELD(u32, task, TASK_PID), .process = FIELD(u32, task, TASK_TGID)};
}

static __always_inline bool valid(u64 since_ns, u64 now_ns)
{
    u32 zero = 0;
    u64 *from = valid_from.lookup(&zero);
    return from && since_ns >= *from && since_ns <= now_ns;
}

static __always_inline void note(struct scheduled *s, u32 tid, struct thread *known, u64 now_ns, u32 phase)
{
    if (known) {
        known->since_ns = now_ns;
        known->phase = phase;
        return;
    }
    struct thread fresh = {.since_ns = now_ns, .phase = phase};
    if (threads.update(&tid, &fresh))
        COUNT(s->lost);
}

static __always_inline void leave(struct core *core, u64 task, bool preempted, u64 now_ns)
{
    struct scheduled *s = scheduled.lookup(&core->instance);
    u64 current = bpf_get_current_pid_tgid();
    u32 tid = (u32)current, process = current >> 32;
    if (!s || core->tid != tid || !valid(core->since_ns, now_ns))
        return;
    __sync_fetch_and_add(&s->on_cpu_ns, now_ns - core->since_ns);

    u32 state = FIELD(u32, task, TASK_STATE);
    if (state & TASK_DEAD) {
        threads.delete(&tid);
        if (tid == process)
            processes.delete(&process);
        return;
    }
    bool runnable = preempted || !state;
    if (runnable)
        COUNT(s->preemptions);
    u32 phase = runnable ? QUEUED : state & TASK_UNINTERRUPTIBLE ? ASLEEP_FOR_GOOD : ASLEEP;
    note(s, tid, threads.lookup(&tid), now_ns, phase);
}

static __always_inline void enter(struct core *core, u32 tid, u32 instance, u64 now_ns)
{
    struct scheduled *s = scheduled.lookup(&instance);
    if (!s)
        return;
    struct thread *thread = threads.lookup(&tid);
    if (thread && thread->phase == QUEUED && valid(thread->since_ns, now_ns))
        observe_in(&s->run_queue, now_ns - thread->since_ns);
    note(s, tid, thread, now_ns, RUNNING);
    core->instance = instance;
    core->tid = tid;
    core->since_ns = now_ns;
}

HOOK(sched_switch)
{
    u32 cpu = bpf_get_smp_processor_id();
    struct core *core = cores.lookup(&cpu);
    if (!core)
        return 0;
    u64 now_ns = 0;
    if (core->since_ns) {
        now_ns = bpf_ktime_get_ns();
        leave(core, ctx->args[1], ctx->args[0], now_ns);
        core->since_ns = 0;
    }
    struct identity next = identity_of(ctx->args[2]);
    if (!next.process)
        return 0; /* the core idles */
    u32 *instance = processes.lookup(&next.process);
    if (instance)
        enter(core, next.tid, *instance, now_ns ? now_ns : bpf_ktime_get_ns());
    return 0;
}

static __always_inline int wake(u64 task)
{
    struct identity who = identity_of(task);
    u32 *instance = processes.lookup(&who.process);
    struct scheduled *s = instance ? scheduled.lookup(instance) : NULL;
    if (!s)
        return 0;
    u64 now_ns = bpf_ktime_get_ns();
    struct thread *thread = threads.lookup(&who.tid);
    if (thread && valid(thread->since_ns, now_ns)) {
        if (thread->phase == RUNNING)
            return 0; /* it was about to sleep */
        u64 slept_ns = now_ns - thread->since_ns;
        if (thread->phase == ASLEEP_FOR_GOOD)
            __sync_fetch_and_add(&s->uninterruptible_ns, slept_ns);
        if (thread->phase != QUEUED)
            observe_in(&s->off_cpu, slept_ns);
    }
    note(s, who.tid, thread, now_ns, QUEUED);
    return 0;
}

HOOK(sched_wakeup)
{
    return wake(ctx->args[0]);
}

HOOK(sched_wakeup_new)
{
    return wake(ctx->args[0]);
}

HOOK(sched_migrate_task)
{
    struct identity who = identity_of(ctx->args[0]);
    u32 *instance = processes.lookup(&who.process);
    struct scheduled *s = instance ? scheduled.lookup(instance) : NULL;
    if (s)
        COUNT(s->migrations);
    return 0;
}

HOOK(sched_process_fork)
{
    u32 parent = bpf_get_current_pid_tgid() >> 32;
    u32 *instance = processes.lookup(&parent);
    if (!instance)
        return 0;
    struct identity child = identity_of(ctx->args[1]);
    if (child.process != parent) {
        u32 inherited = *instance;
        processes.update(&child.process, &inherited);
    }
    return 0;
}
