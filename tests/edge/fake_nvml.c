/* What koinon_edge asks of libnvidia-ml.so.1, as three drivers answer it (-DJETSON, -DBROKEN, neither: a server with
 * two graphics processors, or with -DOLD one whose driver does not count joules). While the file that $KOINON_NVML_HANGS
 * names is there, no question about power is answered. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef JETSON
#define SAY(set) return 3
#else
#define SAY(set) do { set; return 0; } while (0)
#endif

typedef struct { unsigned gpu, memory; } rates;
typedef struct { unsigned long long total, free, used; } memory;

static int opened = 0, millijoules = 5000;

int nvmlInit_v2(void) {
#ifdef BROKEN
    return 9;
#endif
    opened++;
    return 0;
}
int nvmlShutdown(void) { opened--; return 0; }
int still_open(void) { return opened; }
int nvmlDeviceGetCount_v2(unsigned *count) {
#ifdef JETSON
    *count = 1;
#else
    *count = 2;
#endif
    return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)(size_t)(0x700000000 + index); return 0; }
int nvmlDeviceGetName(void *device, char *name, unsigned length) { strncpy(name, "NVIDIA H200", length); return 0; }
static unsigned number(void *device) { return (size_t)device - 0x700000000; }

int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) {
    const char *hangs = getenv("KOINON_NVML_HANGS");
    while (hangs && access(hangs, F_OK) == 0) usleep(5000);
    SAY(*milliwatts = 120500 + 1000 * number(device));
}
#ifndef OLD
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *sum) { SAY(*sum = (millijoules += 250)); }
#endif
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius) { SAY(*celsius = sensor == 0 ? 41 + number(device) : 999); }
int nvmlDeviceGetUtilizationRates(void *device, rates *found) { SAY((found->gpu = 87, found->memory = 12)); }
int nvmlDeviceGetMemoryInfo(void *device, memory *found) {
    SAY((found->total = 141000000000ull, found->used = 2000000000ull, found->free = 139000000000ull));
}
