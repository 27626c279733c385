/* Stands between a program and the C library (LD_PRELOAD) and counts the operations that
 * change files below one folder. At the operation with a given number it kills the
 * process (SIGKILL, as a preempted machine would look), or makes the operation fail.
 * It sees what C++ libraries do, too.
 *
 * faults_arm() switches it on in a process; before, and in other folders, it does nothing.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[PATH_MAX];
static size_t root_length;
static atomic_long count;
static long first, last;        /* numbers of the operations that are hit */
static int error, log_file = -1; /* error 0: kill */

#define REAL(name, type, ...)                                         \
  static type (*real)(__VA_ARGS__);                                   \
  if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

/* Operations first..last, counted from 1, fail with `number` (an errno), or the first of
 * them kills the process when `number` is 0. Each operation is a line in `log`. */
void faults_arm(const char *folder, long from, long to, int number, int log) {
  strncpy(root, folder, sizeof root - 1);
  root_length = strlen(root);
  count = 0;
  first = from;
  last = to;
  error = number;
  log_file = log;
}

long faults_count(void) { return count; }

static const char *of_file(int file, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t n = readlink(link, path, PATH_MAX - 1);
  path[n < 0 ? 0 : n] = 0;
  return path;
}

static const char *at(int folder, const char *name, char *path) {
  if (name[0] == '/') return name;
  char inside[PATH_MAX];
  if (folder == AT_FDCWD) {
    if (!getcwd(inside, sizeof inside)) inside[0] = 0;
  } else {
    of_file(folder, inside);
  }
  snprintf(path, PATH_MAX, "%.2000s/%.2000s", inside, name);
  return path;
}

/* Returns 1 when the operation is to fail. `half` is done before a kill. */
static int hit(const char *what, const char *path, int file, const void *data, size_t size) {
  if (!root_length || strncmp(path, root, root_length)) return 0;
  long number = ++count;
  int now = number >= first && number <= last;
  if (log_file >= 0 && (now || error == 0)) {
    char line[PATH_MAX + 64];
    int n = snprintf(line, sizeof line, "%ld %s %.3000s\n", number, what, path + root_length);
    syscall(SYS_write, log_file, line, n);
  }
  if (!now) return 0;
  if (error) {
    errno = error;
    return 1;
  }
  if (size > 1) syscall(SYS_write, file, data, size / 2); /* a torn write */
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

#define OPEN(name)                                                                   \
  int name(const char *path, int flags, ...) {                                       \
    REAL(name, int, const char *, int, ...);                                         \
    va_list rest;                                                                    \
    va_start(rest, flags);                                                           \
    int mode = va_arg(rest, int);                                                    \
    va_end(rest);                                                                    \
    char whole[PATH_MAX];                                                            \
    if (flags & (O_CREAT | O_TRUNC) && hit("open", at(AT_FDCWD, path, whole), 0, 0, 0)) \
      return -1;                                                                     \
    return real(path, flags, mode);                                                  \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                 \
  int name(int folder, const char *path, int flags, ...) {                           \
    REAL(name, int, int, const char *, int, ...);                                    \
    va_list rest;                                                                    \
    va_start(rest, flags);                                                           \
    int mode = va_arg(rest, int);                                                    \
    va_end(rest);                                                                    \
    char whole[PATH_MAX];                                                            \
    if (flags & (O_CREAT | O_TRUNC) && hit("open", at(folder, path, whole), 0, 0, 0)) \
      return -1;                                                                     \
    return real(folder, path, flags, mode);                                          \
  }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int file, const void *data, size_t size) {
  REAL(write, ssize_t, int, const void *, size_t);
  char path[PATH_MAX];
  if (root_length && hit("write", of_file(file, path), file, data, size)) return -1;
  return real(file, data, size);
}

ssize_t writev(int file, const struct iovec *parts, int number) {
  REAL(writev, ssize_t, int, const struct iovec *, int);
  char path[PATH_MAX];
  if (root_length && number &&
      hit("write", of_file(file, path), file, parts[0].iov_base, parts[0].iov_len))
    return -1;
  return real(file, parts, number);
}

#define PWRITE(name, offset_type)                                                    \
  ssize_t name(int file, const void *data, size_t size, offset_type offset) {        \
    REAL(name, ssize_t, int, const void *, size_t, offset_type);                     \
    char path[PATH_MAX];                                                             \
    if (root_length && hit("write", of_file(file, path), file, data, size)) return -1; \
    return real(file, data, size, offset);                                           \
  }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define ON_FILE(name)                                                                \
  int name(int file) {                                                               \
    REAL(name, int, int);                                                            \
    char path[PATH_MAX];                                                             \
    if (root_length && hit("fsync", of_file(file, path), 0, 0, 0)) return -1;        \
    return real(file);                                                               \
  }
ON_FILE(fsync)
ON_FILE(fdatasync)

#define ON_PATH(name, what)                                                          \
  int name(const char *path) {                                                       \
    REAL(name, int, const char *);                                                   \
    char whole[PATH_MAX];                                                            \
    if (hit(what, at(AT_FDCWD, path, whole), 0, 0, 0)) return -1;                    \
    return real(path);                                                               \
  }
ON_PATH(unlink, "unlink")
ON_PATH(rmdir, "rmdir")

int unlinkat(int folder, const char *path, int flags) {
  REAL(unlinkat, int, int, const char *, int);
  char whole[PATH_MAX];
  if (hit(flags ? "rmdir" : "unlink", at(folder, path, whole), 0, 0, 0)) return -1;
  return real(folder, path, flags);
}

int mkdir(const char *path, mode_t mode) {
  REAL(mkdir, int, const char *, mode_t);
  char whole[PATH_MAX];
  if (hit("mkdir", at(AT_FDCWD, path, whole), 0, 0, 0)) return -1;
  return real(path, mode);
}

int mkdirat(int folder, const char *path, mode_t mode) {
  REAL(mkdirat, int, int, const char *, mode_t);
  char whole[PATH_MAX];
  if (hit("mkdir", at(folder, path, whole), 0, 0, 0)) return -1;
  return real(folder, path, mode);
}

int rename(const char *old, const char *new) {
  REAL(rename, int, const char *, const char *);
  char whole[PATH_MAX];
  if (hit("rename", at(AT_FDCWD, new, whole), 0, 0, 0)) return -1;
  return real(old, new);
}

int renameat(int from, const char *old, int to, const char *new) {
  REAL(renameat, int, int, const char *, int, const char *);
  char whole[PATH_MAX];
  if (hit("rename", at(to, new, whole), 0, 0, 0)) return -1;
  return real(from, old, to, new);
}

int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
  REAL(renameat2, int, int, const char *, int, const char *, unsigned);
  char whole[PATH_MAX];
  if (hit("rename", at(to, new, whole), 0, 0, 0)) return -1;
  return real(from, old, to, new, flags);
}

int link(const char *old, const char *new) {
  REAL(link, int, const char *, const char *);
  char whole[PATH_MAX];
  if (hit("link", at(AT_FDCWD, new, whole), 0, 0, 0)) return -1;
  return real(old, new);
}

int linkat(int from, const char *old, int to, const char *new, int flags) {
  REAL(linkat, int, int, const char *, int, const char *, int);
  char whole[PATH_MAX];
  if (hit("link", at(to, new, whole), 0, 0, 0)) return -1;
  return real(from, old, to, new, flags);
}

int ftruncate(int file, off_t size) {
  REAL(ftruncate, int, int, off_t);
  char path[PATH_MAX];
  if (root_length && hit("truncate", of_file(file, path), 0, 0, 0)) return -1;
  return real(file, size);
}
