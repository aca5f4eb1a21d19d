/* A fault injector and recorder for the system calls that change files, loaded with LD_PRELOAD.
 *
 * Owns: seeing every call below one directory that writes, syncs, resizes, names or unnames a file;
 * failing, tearing, delaying or killing at a planned one (shim_plan.h); recording all of them, of all
 * processes, in one order (shim_record.h). Does not own: judging anything. Does not see: stores into a
 * mapping, and calls that do not go through libc.
 *
 *   FAULTS_DIR     the directory, a real path; files outside it are left alone
 *   FAULTS_PLAN    see shim_plan.h                FAULTS_COUNTS  see shim_plan.h
 *   FAULTS_TRACE   file to record to              FAULTS_ROLE    this process's role in plan and counts
 *   FAULTS_NOSYNC  if set, syncs are recorded but not made (a trace on a real disk, quicker)
 *   FAULTS_DIE_WITH_PARENT   the first process to see it dies with its parent, and hides it from its children
 *
 * A write to a file called ACK or ACK.<anything>, in any directory, is never counted or struck; it is
 * recorded as a word of the witness. A process may change its role by calling faults_role().
 *
 * A child of vfork() shares this memory with its parent until it execs, so whatever runs under another
 * pid than the one that set the tables up is passed through untouched.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <dirent.h>
#include <fnmatch.h>
#include <limits.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static ssize_t (*real_writev)(int, const struct iovec *, int);
#include "shim_plan.h"
#include "shim_record.h"

#define REAL(ret, name, ...) static ret (*real_##name)(__VA_ARGS__)
REAL(ssize_t, write, int, const void *, size_t);
REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
REAL(ssize_t, pwritev64, int, const struct iovec *, int, off64_t);
REAL(ssize_t, pwritev64v2, int, const struct iovec *, int, off64_t, int);
REAL(ssize_t, sendfile64, int, int, off64_t *, size_t);
REAL(ssize_t, copy_file_range, int, off64_t *, int, off64_t *, size_t, unsigned);
REAL(int, fsync, int);
REAL(int, fdatasync, int);
REAL(int, ftruncate64, int, off64_t);
REAL(int, truncate64, const char *, off64_t);
REAL(int, fallocate64, int, int, off64_t, off64_t);
REAL(int, posix_fallocate64, int, off64_t, off64_t);
REAL(int, openat64, int, const char *, int, ...);
REAL(int, close, int);
REAL(int, close_range, unsigned, unsigned, int);
REAL(int, dup, int);
REAL(int, dup2, int, int);
REAL(int, dup3, int, int, int);
REAL(int, fcntl64, int, int, ...);
REAL(int, renameat2, int, const char *, int, const char *, unsigned);
REAL(int, linkat, int, const char *, int, const char *, int);
REAL(int, unlinkat, int, const char *, int);
REAL(int, mkdirat, int, const char *, mode_t);

/* ---- which descriptors and paths are ours ---------------------------------------------------- */

#define MAX_FDS 8192
struct file { const char *path; int is_ack, is_dsync, is_append; };
static struct file files[MAX_FDS];
static char directory[PATH_MAX];
static size_t directory_bytes;
static volatile pid_t owner; /* 0: the shim is idle */

static int active(void) { return owner && owner == getpid(); }

static struct file *traced(int fd) {
  return owner && fd >= 0 && fd < MAX_FDS && files[fd].path && active() ? &files[fd] : NULL;
}

/* Paths are kept for ever, once each: another thread may still hold one when its file is closed. */
static const char *interned(const char *path) {
  static struct name { struct name *next; char text[]; } *table[1024];
  unsigned h = 5381;
  for (const char *p = path; *p; p++) h = h * 33 + (unsigned char)*p;
  static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
  pthread_mutex_lock(&guard);
  struct name **head = &table[h % 1024], *n = *head;
  while (n && strcmp(n->text, path)) n = n->next;
  if (!n) {
    n = malloc(sizeof *n + strlen(path) + 1);
    strcpy(n->text, path);
    n->next = *head;
    *head = n;
  }
  pthread_mutex_unlock(&guard);
  return n->text;
}

static const char *below(const char *absolute) {
  if (strncmp(absolute, directory, directory_bytes)) return NULL;
  const char *rest = absolute + directory_bytes;
  if (*rest && *rest != '/') return NULL;
  while (*rest == '/') rest++;
  return *rest ? rest : ".";
}

static int is_ack_name(const char *path) {
  const char *base = strrchr(path, '/');
  base = base ? base + 1 : path;
  return !strncmp(base, "ACK", 3) && (!base[3] || base[3] == '.');
}

/* The name of (dir fd, path) below the directory with symlinks resolved except in its last part. */
static const char *locate(int at, const char *path, char out[PATH_MAX]) {
  char whole[PATH_MAX], parent[PATH_MAX], link[64];
  if (!active() || !path || !*path) return NULL;
  if (path[0] == '/') snprintf(whole, sizeof whole, "%s", path);
  else {
    snprintf(link, sizeof link, "/proc/self/fd/%d", at);
    ssize_t n = at == AT_FDCWD ? (getcwd(parent, sizeof parent) ? (ssize_t)strlen(parent) : -1)
                               : readlink(link, parent, sizeof parent - 1);
    if (n < 0) return NULL;
    parent[n] = 0;
    if ((size_t)snprintf(whole, sizeof whole, "%s/%s", parent, path) >= sizeof whole) return NULL;
  }
  size_t end = strlen(whole);
  while (end > 1 && whole[end - 1] == '/') whole[--end] = 0;
  char *base = strrchr(whole, '/') + 1;
  if (!strcmp(base, ".") || !strcmp(base, "..") || !*base) {
    if (!realpath(whole, out)) return NULL;
    return below(out);
  }
  base[-1] = 0;
  if (!realpath(*whole ? whole : "/", out)) return NULL;
  size_t used = strlen(out);
  if (used + strlen(base) + 2 > PATH_MAX) return NULL;
  out[used] = '/';
  strcpy(out + used + 1, base);
  return below(out);
}

static void adopt(int fd) { /* start to follow a fresh descriptor if it is ours */
  char link[64], target[PATH_MAX];
  struct stat st;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, target, sizeof target - 1);
  if (n <= 0) return;
  target[n] = 0;
  const char *path = below(target);
  int is_ack = is_ack_name(target);
  if ((!path && !is_ack) || fstat(fd, &st) || (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))) return;
  if (fd >= MAX_FDS) refuse("too many open files", target);
  int flags = real_fcntl64(fd, F_GETFL);
  files[fd] = (struct file){interned(path ? path : target), is_ack, (flags & O_DSYNC) != 0, (flags & O_APPEND) != 0};
}

static void forget(int fd) { if (fd >= 0 && fd < MAX_FDS && owner && active()) files[fd].path = NULL; }

static int copied(int from, int to) {
  if (to < 0 || !owner || !active()) return to;
  if (to < MAX_FDS) files[to] = from >= 0 && from < MAX_FDS ? files[from] : (struct file){0};
  return to;
}

/* ---- start and fork -------------------------------------------------------------------------- */

static void open_trace(void) {
  const char *path = getenv("FAULTS_TRACE");
  if (!path) return;
  int fd = real_openat64(AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  int high = fd < 0 ? -1 : real_fcntl64(fd, F_DUPFD_CLOEXEC, 900);
  if (high < 0) refuse("cannot open FAULTS_TRACE", path);
  real_close(fd);
  trace_fd = high;
}

static void announce(void) {
  take_slot();
  lock();
  record(OP_START, role, 0, NULL, 0, 0);
  unlock();
}

static void before_fork(void) { pthread_mutex_lock(&mutex); }
static void after_fork_parent(void) { pthread_mutex_unlock(&mutex); }
static void after_fork_child(void) {
  pthread_mutex_init(&mutex, NULL);
  owner = getpid();
  if (trace_fd >= 0) { /* flock belongs to the open file: parent and child must not share one */
    real_close(trace_fd);
    open_trace();
  }
  announce();
}

static void map_counts(const char *path) {
  int fd = real_openat64(AT_FDCWD, path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0 || real_ftruncate64(fd, sizeof(struct counts))) refuse("cannot open FAULTS_COUNTS", path);
  counts = mmap(NULL, sizeof(struct counts), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (counts == MAP_FAILED) refuse("cannot map FAULTS_COUNTS", path);
  counts->magic = COUNTS_MAGIC;
  real_close(fd);
}

static void adopt_inherited(void) {
  DIR *all = opendir("/proc/self/fd");
  if (!all) return;
  for (struct dirent *e; (e = readdir(all));)
    if (e->d_name[0] != '.' && atoi(e->d_name) != dirfd(all)) adopt(atoi(e->d_name));
  closedir(all);
}

static void load_real(void) {
#define LOAD(name) real_##name = (__typeof__(real_##name))dlsym(RTLD_NEXT, #name)
  LOAD(write); LOAD(pwrite64); LOAD(writev); LOAD(pwritev64); LOAD(pwritev64v2); LOAD(sendfile64);
  LOAD(copy_file_range); LOAD(fsync); LOAD(fdatasync); LOAD(ftruncate64); LOAD(truncate64); LOAD(fallocate64);
  LOAD(posix_fallocate64); LOAD(openat64); LOAD(close); LOAD(close_range); LOAD(dup); LOAD(dup2); LOAD(dup3);
  LOAD(fcntl64); LOAD(renameat2); LOAD(linkat); LOAD(unlinkat); LOAD(mkdirat);
}

/* Reads the environment and starts to work; a preloaded process that forks its runs calls it in each. */
__attribute__((visibility("default"))) void faults_begin(void) {
  const char *text = getenv("FAULTS_DIR");
  if (!text || owner) return;
  snprintf(directory, sizeof directory, "%s", text);
  directory_bytes = strlen(directory);
  if ((text = getenv("FAULTS_ROLE"))) snprintf(role, sizeof role, "%s", text);
  if ((text = getenv("FAULTS_PLAN"))) {
    char *copy = strdup(text), *state;
    for (char *r = strtok_r(copy, ";", &state); r; r = strtok_r(NULL, ";", &state)) parse_rule(r);
    free(copy);
  }
  if ((text = getenv("FAULTS_COUNTS"))) map_counts(text);
  open_trace();
  owner = getpid();
  pthread_atfork(before_fork, after_fork_parent, after_fork_child);
  announce();
  adopt_inherited();
}

__attribute__((constructor)) static void start(void) {
  load_real();
  if (getenv("FAULTS_DIE_WITH_PARENT")) { /* only the process that the test itself starts */
    unsetenv("FAULTS_DIE_WITH_PARENT");
    prctl(PR_SET_PDEATHSIG, SIGKILL);
  }
  faults_begin();
}

__attribute__((visibility("default"))) void faults_role(const char *name) {
  if (!active()) return;
  snprintf(role, sizeof role, "%s", name);
  announce();
}

/* ---- data ------------------------------------------------------------------------------------ */

static ssize_t put(enum kind kind, int fd, const void *data, size_t size, off64_t offset, int flags) {
  struct file *f = traced(fd);
  struct verdict v = f->is_ack ? (struct verdict){A_NONE, 0, 0} : decide(kind, f->path);
  before(v);
  if (v.act == A_ERROR) return errno = (int)v.arg, -1;
  size_t want = v.act == A_TORN || v.act == A_SHORT ? portion(v, size) : size;
  lock();
  int positional = offset >= 0;
  struct iovec one = {(void *)data, want};
  ssize_t done = flags ? real_pwritev64v2(fd, &one, 1, offset, flags)
                       : positional ? real_pwrite64(fd, data, want, offset) : real_write(fd, data, want);
  int error = errno;
  if (done > 0) {
    struct stat st;
    if (f->is_append) offset = fstat(fd, &st) ? 0 : st.st_size - done;
    else if (!positional) offset = lseek64(fd, 0, SEEK_CUR) - done;
    uint64_t inode = inode_of(fd);
    record(f->is_ack ? OP_ACK : OP_WRITE, f->path, offset, data, (size_t)done, inode);
    if (!f->is_ack && (f->is_dsync || flags & (RWF_DSYNC | RWF_SYNC))) {
      record(OP_SYNC_BEGIN, f->path, 0, NULL, 0, inode);
      record(OP_SYNC_END, f->path, 0, NULL, 0, inode);
    }
  }
  return finish(v, done, error);
}

static ssize_t put_vector(int fd, const struct iovec *iov, int count, off64_t offset, int flags) {
  if (count == 1) return put(K_WRITEV, fd, iov->iov_base, iov->iov_len, offset, flags);
  size_t size = 0, at = 0;
  for (int i = 0; i < count; i++) size += iov[i].iov_len;
  char *flat = malloc(size + 1);
  for (int i = 0; i < count; at += iov[i++].iov_len) memcpy(flat + at, iov[i].iov_base, iov[i].iov_len);
  ssize_t done = put(K_WRITEV, fd, flat, size, offset, flags);
  int error = errno;
  free(flat);
  errno = error;
  return done;
}

ssize_t write(int fd, const void *b, size_t n) { return traced(fd) ? put(K_WRITE, fd, b, n, -1, 0) : real_write(fd, b, n); }
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t o) {
  return traced(fd) && o >= 0 ? put(K_PWRITE, fd, b, n, o, 0) : real_pwrite64(fd, b, n, o);
}
ssize_t pwrite(int fd, const void *b, size_t n, off_t o) { return pwrite64(fd, b, n, o); }
ssize_t writev(int fd, const struct iovec *v, int c) {
  return traced(fd) && c > 0 ? put_vector(fd, v, c, -1, 0) : real_writev(fd, v, c);
}
ssize_t pwritev64(int fd, const struct iovec *v, int c, off64_t o) {
  return traced(fd) && c > 0 && o >= 0 ? put_vector(fd, v, c, o, 0) : real_pwritev64(fd, v, c, o);
}
ssize_t pwritev(int fd, const struct iovec *v, int c, off_t o) { return pwritev64(fd, v, c, o); }
ssize_t pwritev64v2(int fd, const struct iovec *v, int c, off64_t o, int flags) {
  return traced(fd) && c > 0 ? put_vector(fd, v, c, o, flags) : real_pwritev64v2(fd, v, c, o, flags);
}
ssize_t pwritev2(int fd, const struct iovec *v, int c, off_t o, int flags) { return pwritev64v2(fd, v, c, o, flags); }

/* A copy inside the kernel into one of our files is made as a read and a write, so that it can be torn. */
static ssize_t copy_in(enum kind kind, int out, off64_t *out_at, int in, off64_t *in_at, size_t n) {
  if (n > 1 << 20) n = 1 << 20;
  char *data = malloc(n + 1);
  ssize_t got = in_at ? pread64(in, data, n, *in_at) : read(in, data, n);
  ssize_t done = got > 0 ? put(kind, out, data, (size_t)got, out_at ? *out_at : -1, 0) : got;
  int error = errno;
  if (in_at && done > 0) *in_at += done;
  if (out_at && done > 0) *out_at += done;
  if (!in_at && got > 0 && done < got) lseek64(in, (done > 0 ? done : 0) - got, SEEK_CUR);
  free(data);
  errno = error;
  return done;
}
ssize_t sendfile64(int out, int in, off64_t *o, size_t n) {
  return traced(out) ? copy_in(K_SENDFILE, out, NULL, in, o, n) : real_sendfile64(out, in, o, n);
}
ssize_t sendfile(int out, int in, off_t *o, size_t n) { return sendfile64(out, in, (off64_t *)o, n); }
ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t n, unsigned flags) {
  return traced(out) ? copy_in(K_COPYRANGE, out, out_at, in, in_at, n)
                     : real_copy_file_range(in, in_at, out, out_at, n, flags);
}

static int sync_file(enum kind kind, int fd, int (*real)(int)) {
  struct file *f = traced(fd);
  if (!f || f->is_ack) return real(fd);
  struct verdict v = decide(kind, f->path);
  before(v);
  uint64_t inode = inode_of(fd);
  if (v.act == A_ERROR || v.act == A_ERROR_AFTER) {
    lock();
    record(OP_SYNC_FAIL, f->path, 0, NULL, 0, inode);
    unlock();
    return errno = (int)v.arg, -1;
  }
  lock();
  record(OP_SYNC_BEGIN, f->path, 0, NULL, 0, inode);
  unlock();
  int result = getenv("FAULTS_NOSYNC") ? 0 : real(fd), error = errno;
  lock();
  record(result ? OP_SYNC_FAIL : OP_SYNC_END, f->path, 0, NULL, 0, inode);
  return (int)finish(v, result, error);
}
int fsync(int fd) { return sync_file(K_FSYNC, fd, real_fsync); }
int fdatasync(int fd) { return sync_file(K_FDATASYNC, fd, real_fdatasync); }

int ftruncate64(int fd, off64_t size) {
  struct file *f = traced(fd);
  if (!f || f->is_ack) return real_ftruncate64(fd, size);
  struct verdict v = decide(K_TRUNC, f->path);
  before(v);
  if (v.act == A_ERROR) return errno = (int)v.arg, -1;
  lock();
  int result = real_ftruncate64(fd, size), error = errno;
  if (!result) record(OP_TRUNC, f->path, size, NULL, 0, inode_of(fd));
  return (int)finish(v, result, error);
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }
int truncate64(const char *path, off64_t size) {
  char found[PATH_MAX];
  if (!locate(AT_FDCWD, path, found)) return real_truncate64(path, size);
  int fd = open64(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  int result = ftruncate64(fd, size), error = errno;
  close(fd);
  errno = error;
  return result;
}
int truncate(const char *path, off_t size) { return truncate64(path, size); }

static int allocate(int fd, int mode, off64_t offset, off64_t size) {
  struct file *f = traced(fd);
  struct verdict v = decide(K_FALLOCATE, f->path);
  before(v);
  if (v.act == A_ERROR) return errno = (int)v.arg, -1;
  if (mode & ~(FALLOC_FL_KEEP_SIZE)) return errno = EOPNOTSUPP, -1; /* nothing here models holes */
  lock();
  int result = real_fallocate64(fd, mode, offset, size), error = errno;
  if (!result && !mode) record(OP_GROW, f->path, offset + size, NULL, 0, inode_of(fd));
  return (int)finish(v, result, error);
}
int fallocate64(int fd, int mode, off64_t o, off64_t n) {
  return traced(fd) ? allocate(fd, mode, o, n) : real_fallocate64(fd, mode, o, n);
}
int fallocate(int fd, int mode, off_t o, off_t n) { return fallocate64(fd, mode, o, n); }
int posix_fallocate64(int fd, off64_t o, off64_t n) {
  if (!traced(fd)) return real_posix_fallocate64(fd, o, n);
  int kept = errno, result = allocate(fd, 0, o, n) ? errno : 0;
  errno = kept;
  return result;
}
int posix_fallocate(int fd, off_t o, off_t n) { return posix_fallocate64(fd, o, n); }

/* ---- names ----------------------------------------------------------------------------------- */

static int open_file(int at, const char *path, int flags, mode_t mode) {
  char found[PATH_MAX];
  const char *name = flags & (O_CREAT | O_TRUNC) ? locate(at, path, found) : NULL;
  int is_anonymous = (flags & O_TMPFILE) == O_TMPFILE;
  if (!name || is_ack_name(name)) {
    int fd = real_openat64(at, path, flags, mode);
    if (fd >= 0 && active()) {
      forget(fd);
      adopt(fd);
      if (is_anonymous && traced(fd)) {
        lock();
        record(OP_CREATE, "", 0, NULL, 0, inode_of(fd));
        unlock();
      }
    }
    return fd;
  }
  struct verdict v = flags & O_CREAT ? decide(K_CREATE, name) : (struct verdict){A_NONE, 0, 0};
  before(v);
  if (v.act == A_ERROR) return errno = (int)v.arg, -1;
  lock();
  struct stat st;
  int existed = !fstatat(at, path, &st, 0);
  int fd = real_openat64(at, path, flags, mode), error = errno;
  if (fd >= 0) {
    forget(fd);
    adopt(fd);
    if (!existed) record(OP_CREATE, name, 0, NULL, 0, inode_of(fd));
    else if (flags & O_TRUNC && st.st_size) record(OP_TRUNC, name, 0, NULL, 0, inode_of(fd));
  }
  int result = (int)finish(v, fd, error);
  if (result < 0 && fd >= 0) {
    forget(fd);
    real_close(fd);
    errno = (int)v.arg;
  }
  return result;
}
#define WITH_MODE(flags) mode_t mode = 0; \
  if ((flags) & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }
int open64(const char *p, int flags, ...) { WITH_MODE(flags) return open_file(AT_FDCWD, p, flags, mode); }
int open(const char *p, int flags, ...) { WITH_MODE(flags) return open_file(AT_FDCWD, p, flags, mode); }
int openat64(int at, const char *p, int flags, ...) { WITH_MODE(flags) return open_file(at, p, flags, mode); }
int openat(int at, const char *p, int flags, ...) { WITH_MODE(flags) return open_file(at, p, flags, mode); }
int creat64(const char *p, mode_t mode) { return open_file(AT_FDCWD, p, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat(const char *p, mode_t mode) { return creat64(p, mode); }
int __open_2(const char *p, int flags) { return open_file(AT_FDCWD, p, flags, 0); }
int __open64_2(const char *p, int flags) { return open_file(AT_FDCWD, p, flags, 0); }
int __openat_2(int at, const char *p, int flags) { return open_file(at, p, flags, 0); }
int __openat64_2(int at, const char *p, int flags) { return open_file(at, p, flags, 0); }

int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
  char found_from[PATH_MAX], found_to[PATH_MAX];
  const char *x = locate(a, from, found_from), *y = locate(b, to, found_to);
  if (!x && !y) return real_renameat2(a, from, b, to, flags);
  if (!x && trace_fd >= 0) refuse("a file renamed into the traced directory has no known content", to);
  struct verdict v = decide(K_RENAME, x ? x : y);
  before(v);
  if (v.act == A_ERROR) return errno = (int)v.arg, -1;
  lock();
  struct stat st;
  int is_directory = x && !y && !fstatat(a, from, &st, AT_SYMLINK_NOFOLLOW) && S_ISDIR(st.st_mode);
  int result = real_renameat2(a, from, b, to, flags), error = errno;
  if (!result && x && y) record(OP_RENAME, x, flags, y, strlen(y), 0);
  else if (!result && x) record(is_directory ? OP_RMDIR : OP_UNLINK, x, 0, NULL, 0, 0);
  return (int)finish(v, result, error);
}
int renameat(int a, const char *from, int b, const char *to) { return renameat2(a, from, b, to, 0); }
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

int linkat(int a, const char *from, int b, const char *to, int flags) {
  char found[PATH_MAX];
  const char *name = locate(b, to, found);
  if (!name) return real_linkat(a, from, b, to, flags);
  struct verdict v = decide(K_LINK, name);
  before(v);
  if (v.act == A_ERROR) return errno = (int)v.arg, -1;
  lock();
  int result = real_linkat(a, from, b, to, flags), error = errno;
  struct stat st;
  if (!result && !fstatat(b, to, &st, AT_SYMLINK_NOFOLLOW)) record(OP_LINK, name, 0, NULL, 0, st.st_ino);
  return (int)finish(v, result, error);
}
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int unlinkat(int at, const char *path, int flags) {
  char found[PATH_MAX];
  const char *name = locate(at, path, found);
  if (!name || is_ack_name(name)) return real_unlinkat(at, path, flags);
  int is_directory = (flags & AT_REMOVEDIR) != 0;
  struct verdict v = decide(is_directory ? K_RMDIR : K_UNLINK, name);
  before(v);
  if (v.act == A_ERROR) return errno = (int)v.arg, -1;
  lock();
  int result = real_unlinkat(at, path, flags), error = errno;
  if (!result) record(is_directory ? OP_RMDIR : OP_UNLINK, name, 0, NULL, 0, 0);
  return (int)finish(v, result, error);
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int at, const char *path, mode_t mode) {
  char found[PATH_MAX];
  const char *name = locate(at, path, found);
  if (!name) return real_mkdirat(at, path, mode);
  struct verdict v = decide(K_MKDIR, name);
  before(v);
  if (v.act == A_ERROR) return errno = (int)v.arg, -1;
  lock();
  int result = real_mkdirat(at, path, mode), error = errno;
  struct stat st;
  if (!result && !fstatat(at, path, &st, AT_SYMLINK_NOFOLLOW)) record(OP_MKDIR, name, 0, NULL, 0, st.st_ino);
  return (int)finish(v, result, error);
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

/* ---- descriptors ----------------------------------------------------------------------------- */

int close(int fd) {
  if (fd >= 0 && fd == trace_fd && active()) return 0;
  forget(fd);
  return real_close(fd);
}
int close_range(unsigned first, unsigned last, int flags) {
  if (active() && !flags) {
    for (unsigned fd = first; fd <= last && fd < MAX_FDS; fd++) forget((int)fd);
    unsigned keep = (unsigned)trace_fd;
    if (trace_fd >= 0 && first <= keep && keep <= last) {
      if (first < keep && real_close_range(first, keep - 1, 0)) return -1;
      return keep < last ? real_close_range(keep + 1, last, 0) : 0;
    }
  }
  return real_close_range(first, last, flags);
}
int dup(int fd) { return copied(fd, real_dup(fd)); }
int dup2(int from, int to) { return copied(from, real_dup2(from, to)); }
int dup3(int from, int to, int flags) { return copied(from, real_dup3(from, to, flags)); }
int fcntl64(int fd, int command, ...) {
  va_list rest;
  va_start(rest, command);
  void *argument = va_arg(rest, void *);
  va_end(rest);
  int result = real_fcntl64(fd, command, argument);
  return command == F_DUPFD || command == F_DUPFD_CLOEXEC ? copied(fd, result) : result;
}
int fcntl(int fd, int command, ...) {
  va_list rest;
  va_start(rest, command);
  void *argument = va_arg(rest, void *);
  va_end(rest);
  return fcntl64(fd, command, argument);
}
