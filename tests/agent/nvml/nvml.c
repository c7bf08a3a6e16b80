/* Stands in for the driver's libnvidia-ml.so.1, for the calls that trimtab makes. It answers from the file $NVML_STUB, read anew at each
 * call, with lines of four words: CALL DEVICE VALUE RESULT. What is not listed gives 0 and success; the last line that fits counts.
 *   count 0 2 0 | nvmlDeviceGetPowerUsage 1 250000 0 | nvmlDeviceGetTemperature 0 0 15 (device 0 is lost)
 * CALL may be narrowed by its argument: nvmlDeviceGetTemperatureThreshold:1 0 90 0, and fields by id and scope: field:82:0 0 55 0.
 * MIG instance i of device d is device 100 + 10 d + i; "mig d n 0" makes n of them.
 * Each line "xid DEVICE CODE 0" is one event, told once; a device of 99 is one that NVML does not name.
 * RESULT 1000: the call never returns. -DOLD_DRIVER and -DNEW_DRIVER leave out calls that such drivers do not have. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int result;
typedef struct { unsigned index; } *device;
static struct { unsigned index; } devices[256];

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, TIMEOUT = 10, HANG = 1000 };
enum { MIG = 100, EACH = 10, NAMELESS = 99, DEVICES = 16 };

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
    while (found == HANG) pause();
    return found;
}

/* By the argument, where it is listed so; else for any argument. */
static result answer_of(const char *call, long long which, unsigned index, unsigned long long *value) {
    char narrowed[80];
    unsigned long long any;
    result of_any = answer(call, index, &any);
    snprintf(narrowed, sizeof narrowed, "%s:%lld", call, which);
    result r = answer(narrowed, index, value);
    if (r == SUCCESS && *value == 0) { *value = any; r = of_any; }
    return r;
}

static result number(const char *call, device d, unsigned *out) {
    unsigned long long value;
    result r = answer(call, d->index, &value);
    *out = (unsigned)value;
    return r;
}
static result number_of(const char *call, long long which, device d, unsigned *out) {
    unsigned long long value;
    result r = answer_of(call, which, d->index, &value);
    *out = (unsigned)value;
    return r;
}
static device at(unsigned index) { devices[index].index = index; return (device)&devices[index]; }

result nvmlInitWithFlags(unsigned flags) { unsigned long long v; (void)flags; return answer(__func__, 0, &v); }
result nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(result r) { return r == 15 ? "GPU is lost" : r == 9 ? "Driver Not Loaded" : "an error"; }
result nvmlSystemGetDriverVersion(char *out, unsigned size) { snprintf(out, size, "580.65.06"); return SUCCESS; }

result nvmlDeviceGetCount_v2(unsigned *count) {
    unsigned long long value;
    result r = answer("count", 0, &value);
    *count = (unsigned)value;
    return r;
}
result nvmlDeviceGetHandleByIndex_v2(unsigned index, device *d) {
    unsigned long long value;
    if (index >= DEVICES) return INVALID_ARGUMENT;
    *d = at(index);
    return answer(__func__, index, &value);
}
result nvmlDeviceGetUUID(device d, char *out, unsigned size) {
    snprintf(out, size, d->index < MIG ? "GPU-%04u" : "MIG-%04u", d->index);
    return SUCCESS;
}
result nvmlDeviceGetName(device d, char *out, unsigned size) {
    snprintf(out, size, d->index < MIG ? "Stub GPU" : "Stub GPU MIG 1g.10gb");
    return SUCCESS;
}
struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char address[32]; };
result nvmlDeviceGetPciInfo_v3(device d, struct pci *out) {
    memset(out, 0, sizeof *out);
    snprintf(out->address, sizeof out->address, "00000000:%02X:00.0", 0x41 + d->index);
    return SUCCESS;
}

#define NUMBER(name) result name(device d, unsigned *out) { return number(__func__, d, out); }
#define NUMBER_OF(name) result name(device d, int which, unsigned *out) { return number_of(__func__, which, d, out); }
NUMBER(nvmlDeviceGetPowerUsage)
NUMBER(nvmlDeviceGetEnforcedPowerLimit)
NUMBER(nvmlDeviceGetPowerManagementDefaultLimit)
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration)
NUMBER(nvmlDeviceGetCurrPcieLinkWidth)
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration)
NUMBER(nvmlDeviceGetMaxPcieLinkWidth)
NUMBER(nvmlDeviceGetPcieReplayCounter)
NUMBER(nvmlDeviceGetPersistenceMode)
NUMBER(nvmlDeviceGetPerformanceState)
NUMBER_OF(nvmlDeviceGetTemperatureThreshold)
NUMBER_OF(nvmlDeviceGetClockInfo)
NUMBER_OF(nvmlDeviceGetMaxClockInfo)
NUMBER_OF(nvmlDeviceGetNvLinkState)
#ifndef OLD_DRIVER
NUMBER_OF(nvmlDeviceGetNvLinkRemoteDeviceType)
/* The value is the bus. */
result nvmlDeviceGetNvLinkRemotePciInfo_v2(device d, unsigned link, struct pci *out) {
    unsigned bus;
    result r = number_of(__func__, link, d, &bus);
    memset(out, 0, sizeof *out);
    snprintf(out->address, sizeof out->address, "00000000:%02X:00.0", bus);
    return r;
}
#endif
#ifdef NEW_DRIVER
struct temperature { unsigned version; int sensor, celsius; };
result nvmlDeviceGetTemperatureV(device d, struct temperature *out) { return number("nvmlDeviceGetTemperature", d, (unsigned *)&out->celsius); }
#else
NUMBER_OF(nvmlDeviceGetTemperature)
#endif

/* Two numbers: the value's upper and lower 32 bits. */
static result pair(const char *call, device d, unsigned *first, unsigned *second) {
    unsigned long long value;
    result r = answer(call, d->index, &value);
    *first = (unsigned)(value >> 32);
    *second = (unsigned)value;
    return r;
}
#define PAIR(name) result name(device d, unsigned *first, unsigned *second) { return pair(__func__, d, first, second); }
PAIR(nvmlDeviceGetPowerManagementLimitConstraints)
PAIR(nvmlDeviceGetEncoderUtilization)
PAIR(nvmlDeviceGetDecoderUtilization)
PAIR(nvmlDeviceGetEccMode)
PAIR(nvmlDeviceGetMigMode)
PAIR(nvmlDeviceGetGspFirmwareMode)
struct utilisation { unsigned gpu, memory; };
result nvmlDeviceGetUtilizationRates(device d, struct utilisation *out) { return pair(__func__, d, &out->memory, &out->gpu); }

struct memory { unsigned long long total, free, used; };
result nvmlDeviceGetMemoryInfo(device d, struct memory *out) {
    result r = answer(__func__, d->index, &out->used);
    out->total = (d->index < MIG ? 80ULL : 10ULL) << 30;
    out->free = out->total - out->used;
    return r;
}
#ifndef OLD_DRIVER
result nvmlDeviceGetCurrentClocksEventReasons(device d, unsigned long long *out) { return answer(__func__, d->index, out); }
#endif
result nvmlDeviceGetCurrentClocksThrottleReasons(device d, unsigned long long *out) { return answer(__func__, d->index, out); }
/* Narrowed by 2 × type + counter: corrected 0, uncorrected 1; since the driver was loaded 0, in its life 1. */
result nvmlDeviceGetTotalEccErrors(device d, int type, int counter, unsigned long long *out) {
    return answer_of(__func__, 2 * type + counter, d->index, out);
}
/* The value's bytes: corrected, uncorrected, pending, failed. */
result nvmlDeviceGetRemappedRows(device d, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
    unsigned bytes;
    result r = number(__func__, d, &bytes);
    *corrected = bytes & 255;
    *uncorrected = bytes >> 8 & 255;
    *pending = bytes >> 16 & 255;
    *failed = bytes >> 24 & 255;
    return r;
}
struct process { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; };
static result processes(const char *call, device d, unsigned *count, struct process *out) {
    unsigned pid, room = *count;
    unsigned long long memory;
    result r = number(call, d, &pid), r_memory = answer("process_bytes", d->index, &memory);
    if (r) return r;
    *count = pid ? 1 : 0;
    if (room < *count) return INSUFFICIENT_SIZE;
    if (pid) *out = (struct process){pid, r_memory ? ~0ULL : memory, ~0u, ~0u};
    return SUCCESS;
}
#define PROCESSES(name) result name(device d, unsigned *count, struct process *out) { return processes(__func__, d, count, out); }
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3)
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3)

struct field { unsigned id, scope; long long timestamp, latency; unsigned type; result outcome; unsigned long long value; };
result nvmlDeviceGetFieldValues(device d, int count, struct field *fields) {
    char name[80];
    unsigned long long value;
    result r = answer(__func__, d->index, &value);
    for (int i = 0; !r && i < count; i++) {
        snprintf(name, sizeof name, "field:%u:%u", fields[i].id, fields[i].scope);
        fields[i].outcome = answer(name, d->index, &fields[i].value);
        fields[i].type = 3; /* unsigned long long */
    }
    return r;
}
struct fabric { unsigned version; unsigned char cluster[16]; result status; unsigned clique, state, health; };
result nvmlDeviceGetGpuFabricInfoV(device d, struct fabric *out) {
    number("fabric_status", d, (unsigned *)&out->status);
    return pair(__func__, d, &out->health, &out->state);
}

result nvmlDeviceGetMaxMigDeviceCount(device d, unsigned *count) { (void)d; *count = 7; return SUCCESS; }
result nvmlDeviceGetMigDeviceHandleByIndex(device d, unsigned index, device *out) {
    unsigned count;
    result r = number("mig", d, &count);
    if (r || index >= count) return r ? r : NOT_FOUND;
    *out = at(MIG + EACH * d->index + index);
    return SUCCESS;
}

struct event { device from; unsigned long long type, data; unsigned gpu_instance, compute_instance; };
static int told;
result nvmlEventSetCreate(void **set) { unsigned long long v; *set = &told; return answer(__func__, 0, &v); }
result nvmlDeviceRegisterEvents(device d, unsigned long long types, void *set) {
    unsigned long long v;
    (void)types, (void)set;
    return answer(__func__, d->index, &v);
}
result nvmlEventSetWait_v2(void *set, struct event *out, unsigned milliseconds) {
    char listed[80];
    unsigned of;
    unsigned long long code;
    int outcome, position = 0;
    result r = TIMEOUT;
    FILE *file = fopen(getenv("NVML_STUB"), "r");
    (void)set, (void)milliseconds;
    while (r == TIMEOUT && file && fscanf(file, "%79s %u %llu %d", listed, &of, &code, &outcome) == 4)
        if (!strcmp(listed, "xid") && position++ == told) {
            *out = (struct event){of == NAMELESS ? NULL : at(of), 8, code, ~0u, ~0u};
            told++;
            r = outcome;
        }
    if (file) fclose(file);
    return r;
}
result nvmlEventSetFree(void *set) { (void)set; return SUCCESS; }
