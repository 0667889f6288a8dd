"""Errors of the operating system at chosen calls: a library that a process loads before the system's own.

FAULT_CALL   flock, fsync, fsync folder, open (to read), write, rename or mmap, of files below FAULT_DIR
FAULT_AT     the number of the call that fails, from 1; 0 for all of them
FAULT_ERRNO  with which error
FAULT_COUNT  a file to which every such call adds a byte
"""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(kind, name, ...) ((kind (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))

static int calls;  /* of this process */

static int below(const char *path) {
    const char *folder = getenv("FAULT_DIR");
    return folder && path && !strncmp(path, folder, strlen(folder));
}

static int fails(const char *call, const char *path) {
    const char *chosen = getenv("FAULT_CALL"), *log = getenv("FAULT_COUNT");
    if (!chosen || strcmp(chosen, call) || !below(path)) return 0;
    int number = __sync_add_and_fetch(&calls, 1), at = atoi(getenv("FAULT_AT"));
    if (log) {
        int file = open64(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
        if (REAL(ssize_t, "write", int, const void *, size_t)(file, ".", 1) < 0) abort();
        close(file);
    }
    if (at && at != number) return 0;
    errno = atoi(getenv("FAULT_ERRNO"));
    return 1;
}

static int fd_fails(const char *call, int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails(call, path);
}

int flock(int fd, int how) {
    return how != 8 && fd_fails("flock", fd) ? -1 : REAL(int, "flock", int, int)(fd, how);  /* 8: unlock */
}
int fsync(int fd) {
    struct stat about;
    int folder = !fstat(fd, &about) && S_ISDIR(about.st_mode);
    if (fd_fails("fsync", fd) || (folder && fd_fails("fsync folder", fd))) return -1;
    return REAL(int, "fsync", int)(fd);
}
int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    int mode = va_arg(more, int);
    va_end(more);
    if (!(flags & (O_WRONLY | O_RDWR | O_DIRECTORY)) && fails("open", path)) return -1;
    return REAL(int, "open64", const char *, int, ...)(path, flags, mode);
}
ssize_t write(int fd, const void *from, size_t size) {
    return fd_fails("write", fd) ? -1 : REAL(ssize_t, "write", int, const void *, size_t)(fd, from, size);
}
ssize_t pwrite64(int fd, const void *from, size_t size, off64_t at) {
    if (fd_fails("write", fd)) return -1;
    return REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t)(fd, from, size, at);
}
ssize_t pwrite(int fd, const void *from, size_t size, off_t at) { return pwrite64(fd, from, size, at); }
int rename(const char *from, const char *to) {
    char whole[4096];
    if (fails("rename", realpath(from, whole))) return -1;
    return REAL(int, "rename", const char *, const char *)(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
    char whole[4096];
    if (fails("rename", realpath(from, whole))) return -1;
    return REAL(int, "renameat", int, const char *, int, const char *)(a, from, b, to);
}
void *mmap64(void *at, size_t size, int how, int flags, int fd, off64_t offset) {
    if (fd >= 0 && fd_fails("mmap", fd)) return MAP_FAILED;
    return REAL(void *, "mmap64", void *, size_t, int, int, int, off64_t)(at, size, how, flags, fd, offset);
}
void *mmap(void *at, size_t size, int how, int flags, int fd, off_t offset) {
    return mmap64(at, size, how, flags, fd, offset);
}
"""


def built(folder: Path) -> str:
    """The path of the library, compiled into a folder. Skips the test where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler, which builds the library that makes calls fail")
    (folder / "shim.c").write_text(SOURCE)
    options = ["-shared", "-fPIC", "-O1", "-o", folder / "shim.so", folder / "shim.c", "-ldl"]
    subprocess.run([compiler, *options], check=True)
    return str(folder / "shim.so")
