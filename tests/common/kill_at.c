// Counts the file operations of a program that it is preloaded into, and kills the program on entry of one of them.
//
// Each operation is a line "CALL PATH" in the file $KILL_LOG; number $KILL_AT (from 1) is the last. No exit handler runs, no
// buffer is flushed, the operation itself does not happen: SIGKILL.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void before(const char *call, int fd, const char *path) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static long count = 0;
    const char *log = getenv("KILL_LOG"), *at = getenv("KILL_AT");
    char line[8192], folder[4096] = "", link[64];
    if (fd >= 0) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, folder, sizeof folder - 1);
        folder[length > 0 ? length : 0] = 0;
    }
    int size = snprintf(line, sizeof line, "%s %s%s%s\n", call, folder, fd >= 0 && path ? "/" : "", path ? path : "");
    pthread_mutex_lock(&lock);
    int file = log ? open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    if (file >= 0) {
        if (write(file, line, size) != size) abort();
        close(file);
    }
    if (at && ++count == atol(at)) kill(getpid(), SIGKILL);
    pthread_mutex_unlock(&lock);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int rename(const char *from, const char *to) {
    before("rename", -1, to);
    return REAL(rename)(from, to);
}
int mkdir(const char *path, mode_t mode) {
    before("mkdir", -1, path);
    return REAL(mkdir)(path, mode);
}
int unlink(const char *path) {
    before("unlink", -1, path);
    return REAL(unlink)(path);
}
int unlinkat(int folder, const char *path, int flags) {
    before("unlink", path[0] == '/' ? -1 : folder, path);
    return REAL(unlinkat)(folder, path, flags);
}
int rmdir(const char *path) {
    before("rmdir", -1, path);
    return REAL(rmdir)(path);
}
int fsync(int fd) {
    before("fsync", fd, NULL);
    return REAL(fsync)(fd);
}
int fdatasync(int fd) {
    before("fsync", fd, NULL);
    return REAL(fdatasync)(fd);
}
