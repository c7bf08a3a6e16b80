/* Stands in for the driver's libnvidia-ml.so.1, for the calls that trimtab makes. It answers from the file $NVML_STUB, read anew at each
 * call, with lines of four words: CALL DEVICE VALUE RESULT. What is not listed gives 0 and success.
 *   count 0 2 0 | nvmlDeviceGetPowerUsage 1 250000 0 | nvmlDeviceGetTemperature 0 0 15 (device 0 is lost) */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int result;
typedef struct { unsigned index; } *device;
static struct { unsigned index; } devices[16];

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7 };

static result answer(const char *call, unsigned index, unsigned long long *value) {
    char listed[80];
    unsigned of;
    unsigned long long number;
    int outcome, found = SUCCESS;
    FILE *file = fopen(getenv("NVML_STUB"), "r");
    *value = 0;
    while (file && fscanf(file, "%79s %u %llu %d", listed, &of, &number, &outcome) == 4)
        if (!strcmp(listed, call) && of == index) { *value = number; found = outcome; }
    if (file) fclose(file);
    return found;
}

static result number(const char *call, device d, unsigned *out) {
    unsigned long long value;
    result r = answer(call, d->index, &value);
    *out = (unsigned)value;
    return r;
}

result nvmlInitWithFlags(unsigned flags) { unsigned long long v; (void)flags; return answer(__func__, 0, &v); }
result nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(result r) { return r == 15 ? "GPU is lost" : r == 9 ? "Driver Not Loaded" : "an error"; }

result nvmlDeviceGetCount_v2(unsigned *count) {
    unsigned long long value;
    result r = answer("count", 0, &value);
    *count = (unsigned)value;
    return r;
}
result nvmlDeviceGetHandleByIndex_v2(unsigned index, device *d) {
    unsigned long long value;
    if (index >= 16) return INVALID_ARGUMENT;
    devices[index].index = index;
    *d = (device)&devices[index];
    return answer(__func__, index, &value);
}
result nvmlDeviceGetUUID(device d, char *out, unsigned size) { snprintf(out, size, "GPU-%04u", d->index); return SUCCESS; }
result nvmlDeviceGetName(device d, char *out, unsigned size) { (void)d; snprintf(out, size, "Stub GPU"); return SUCCESS; }

#define NUMBER(name) result name(device d, unsigned *out) { return number(__func__, d, out); }
#define NUMBER_OF(name) result name(device d, int which, unsigned *out) { (void)which; return number(__func__, d, out); }
NUMBER(nvmlDeviceGetPowerUsage)
NUMBER(nvmlDeviceGetEnforcedPowerLimit)
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration)
NUMBER(nvmlDeviceGetCurrPcieLinkWidth)
NUMBER(nvmlDeviceGetPcieReplayCounter)
NUMBER_OF(nvmlDeviceGetTemperature)
NUMBER_OF(nvmlDeviceGetClockInfo)
NUMBER_OF(nvmlDeviceGetMaxClockInfo)

struct utilisation { unsigned gpu, memory; };
result nvmlDeviceGetUtilizationRates(device d, struct utilisation *out) { out->memory = 0; return number(__func__, d, &out->gpu); }

struct memory { unsigned long long total, free, used; };
result nvmlDeviceGetMemoryInfo(device d, struct memory *out) {
    result r = answer(__func__, d->index, &out->used);
    out->total = 80ULL << 30;
    out->free = out->total - out->used;
    return r;
}
#ifndef OLD_DRIVER
result nvmlDeviceGetCurrentClocksEventReasons(device d, unsigned long long *out) { return answer(__func__, d->index, out); }
#endif
result nvmlDeviceGetCurrentClocksThrottleReasons(device d, unsigned long long *out) { return answer(__func__, d->index, out); }
result nvmlDeviceGetTotalEccErrors(device d, int type, int counter, unsigned long long *out) {
    if (type != 1 || counter != 0) return INVALID_ARGUMENT; /* uncorrected, since the driver was loaded */
    return answer(__func__, d->index, out);
}
/* The value's bits: 1 a row was remapped, 2 one waits, 4 one failed. */
result nvmlDeviceGetRemappedRows(device d, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
    unsigned bits;
    result r = number(__func__, d, &bits);
    *corrected = 0;
    *uncorrected = bits & 1;
    *pending = bits >> 1 & 1;
    *failed = bits >> 2 & 1;
    return r;
}
struct process { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; };
result nvmlDeviceGetComputeRunningProcesses_v3(device d, unsigned *count, struct process *out) {
    unsigned pid, room = *count;
    result r = number(__func__, d, &pid);
    if (r) return r;
    *count = pid ? 1 : 0;
    if (room < *count) return INSUFFICIENT_SIZE;
    if (pid) *out = (struct process){pid, 1 << 20, ~0u, ~0u};
    return SUCCESS;
}
