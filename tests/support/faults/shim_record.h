/* The recorder: one file, appended by every traced process, in the one order in which things happened.
 *
 * The lock (a mutex between threads, flock on the trace between processes) is held over an operation and
 * its record, so the order of the records is the order of the effects. A process kills itself only with
 * the lock held: no other thread of it is then between an effect and its record.
 */
#ifndef SHIM_RECORD_H
#define SHIM_RECORD_H

enum op { OP_WRITE = 1, OP_SYNC_BEGIN, OP_SYNC_END, OP_SYNC_FAIL, OP_TRUNC, OP_GROW, OP_CREATE, OP_RENAME, OP_LINK,
  OP_UNLINK, OP_MKDIR, OP_RMDIR, OP_ACK, OP_START };
struct record {
  uint32_t size;     /* of the whole record, header included */
  uint16_t op, path_bytes;
  uint32_t pid, tid;
  int64_t offset;    /* of the data; new length for trunc and grow; flags for rename */
  uint64_t inode;
};
_Static_assert(sizeof(struct record) == 32, "tests/support/faults/trace.py reads headers of 32 bytes");

static int trace_fd = -1;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static void lock(void) {
  pthread_mutex_lock(&mutex);
  if (trace_fd >= 0) while (flock(trace_fd, LOCK_EX) && errno == EINTR) {}
}

static void unlock(void) {
  if (trace_fd >= 0) flock(trace_fd, LOCK_UN);
  pthread_mutex_unlock(&mutex);
}

static uint64_t inode_of(int fd) {
  struct stat st;
  return fstat(fd, &st) ? 0 : st.st_ino;
}

static void record(enum op op, const char *path, int64_t offset, const void *data, size_t size, uint64_t inode) {
  if (trace_fd < 0) return;
  size_t path_bytes = strlen(path);
  struct record head = {(uint32_t)(sizeof head + path_bytes + size), (uint16_t)op, (uint16_t)path_bytes,
    (uint32_t)getpid(), (uint32_t)syscall(SYS_gettid), offset, inode};
  struct iovec parts[3] = {{&head, sizeof head}, {(void *)path, path_bytes}, {(void *)data, size}};
  if (real_writev(trace_fd, parts, 3) != (ssize_t)head.size) refuse("the trace could not be written", path);
}

static void die_locked(int whole_group) {
  kill(whole_group ? 0 : getpid(), SIGKILL);
  for (;;) pause();
}

static void before(struct verdict v) {
  if (v.act == A_KILL || v.act == A_GROUP) {
    lock();
    die_locked(v.act == A_GROUP);
  }
  if (v.act == A_STOP) raise(SIGSTOP);
  if (v.act == A_DELAY) {
    struct timespec left = {v.arg / 1000, v.arg % 1000 * 1000000};
    while (nanosleep(&left, &left) && errno == EINTR) {}
  }
}

/* The end of an operation that was done: dies, stops or lies as planned; gives the lock back. */
static long finish(struct verdict v, long result, int error) {
  if (v.act == A_KILL_AFTER || v.act == A_TORN) die_locked(0);
  if (v.act == A_GROUP_AFTER) die_locked(1);
  unlock();
  if (v.act == A_STOP_AFTER) raise(SIGSTOP);
  if (v.act == A_ERROR_AFTER && result >= 0) {
    result = -1;
    error = (int)v.arg;
  }
  errno = error;
  return result;
}
#endif
