/* The probes of the host, as one program: starting the compiler costs more than all of them.
 *
 * What each part sees, and what it is given: its own file. agent/bpf/host.py leaves parts out on a kernel that lacks what they need.
 */
#include "hook.h"
#include "histogram.h"

#ifdef PART_SCHEDULER
#include "scheduler.c"
#endif
#ifdef PART_BLOCK
#include "block.c"
#endif
#ifdef PART_TCP
#include "tcp.c"
#endif
#ifdef PART_OOM
#include "oom.c"
#endif
