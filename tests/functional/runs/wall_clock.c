/* Shifts the wall clock of a process by the seconds in the file WALL_CLOCK; other clocks are left alone. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int clock_gettime(clockid_t id, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    long seconds = 0;
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, at);
    if (id != CLOCK_REALTIME || result != 0) return result;
    FILE *file = fopen(getenv("WALL_CLOCK") ? getenv("WALL_CLOCK") : "/dev/null", "re");
    if (file) {
        if (fscanf(file, "%ld", &seconds) != 1) seconds = 0;
        fclose(file);
    }
    at->tv_sec += seconds;
    return 0;
}
