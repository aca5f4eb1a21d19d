/* The plan: which call of which kind goes wrong, in which process, and how; and the counters.
 *
 * FAULTS_PLAN = rule[;rule...]     rule = [role/]kind[@glob]:when:action
 *   kind    a name of KINDS below, or a group: anywrite, sync, names, any
 *   glob    fnmatch pattern on the path below the directory (no ':' and no ';' in it)
 *   when    n (that call), n+ (that one and all later), n..m (those); calls are counted from 1, by this
 *           rule, in this process: a forked child and a process that takes another role start at 0
 *   action  KILL, STOP, DELAY=ms            before the call
 *           KILL_AFTER, STOP_AFTER          after it
 *           TORN=k, SHORT=k                 really write k bytes (or k% of them), then die / return k
 *           KILL_GROUP, KILL_GROUP_AFTER    the whole process group; start the command in a session of its own
 *           EIO, ENOSPC, EDQUOT, EINTR, EROFS, EACCES, ENOENT, EMFILE     refuse without doing it
 *           EIO_AFTER, ENOSPC_AFTER, ...    do it, then claim that it failed
 *
 * FAULTS_COUNTS names a file with one slot a process, mapped by all of them: what was called how often,
 * and how many rules struck. It outlives a kill, so that a sweep knows what it can aim at and what it hit.
 */
#ifndef SHIM_PLAN_H
#define SHIM_PLAN_H

enum kind {
  K_WRITE, K_PWRITE, K_WRITEV, K_SENDFILE, K_COPYRANGE, K_FSYNC, K_FDATASYNC, K_TRUNC, K_FALLOCATE,
  K_CREATE, K_RENAME, K_LINK, K_UNLINK, K_RMDIR, K_MKDIR, K_COUNT
};
static const char *const KINDS[K_COUNT] = {"write", "pwrite", "writev", "sendfile", "copyrange", "fsync",
  "fdatasync", "trunc", "fallocate", "create", "rename", "link", "unlink", "rmdir", "mkdir"};
#define BIT(k) (1u << (k))
static const struct { const char *name; unsigned kinds; } GROUPS[] = {
  {"anywrite", BIT(K_WRITE) | BIT(K_PWRITE) | BIT(K_WRITEV) | BIT(K_SENDFILE) | BIT(K_COPYRANGE)},
  {"sync", BIT(K_FSYNC) | BIT(K_FDATASYNC)},
  {"names", BIT(K_CREATE) | BIT(K_RENAME) | BIT(K_LINK) | BIT(K_UNLINK) | BIT(K_RMDIR) | BIT(K_MKDIR)},
  {"any", BIT(K_COUNT) - 1},
};

enum act { A_NONE, A_ERROR, A_ERROR_AFTER, A_KILL, A_KILL_AFTER, A_STOP, A_STOP_AFTER, A_DELAY, A_TORN, A_SHORT,
  A_GROUP, A_GROUP_AFTER };
static const struct { const char *name; enum act act; } ACTIONS[] = {
  {"KILL", A_KILL}, {"KILL_AFTER", A_KILL_AFTER}, {"STOP", A_STOP}, {"STOP_AFTER", A_STOP_AFTER},
  {"DELAY", A_DELAY}, {"TORN", A_TORN}, {"SHORT", A_SHORT}, {"KILL_GROUP", A_GROUP},
  {"KILL_GROUP_AFTER", A_GROUP_AFTER},
};
static const struct { const char *name; int number; } ERRORS[] = {
  {"EIO", EIO}, {"ENOSPC", ENOSPC}, {"EDQUOT", EDQUOT}, {"EINTR", EINTR}, {"EROFS", EROFS},
  {"EACCES", EACCES}, {"ENOENT", ENOENT}, {"EMFILE", EMFILE},
};

#define ROLE_BYTES 40
#define MAX_RULES 64
struct rule {
  unsigned kinds;
  char role[ROLE_BYTES], glob[128];
  long from, until;
  enum act act;
  long arg;
  int is_percent;
  long seen;
};
struct verdict { enum act act; long arg; int is_percent; };

#define MAX_SLOTS 512
struct slot { uint32_t pid, struck; char role[ROLE_BYTES]; uint64_t count[16], spare[2]; };
struct counts { uint64_t magic, next, spare[6]; struct slot slot[MAX_SLOTS]; };
_Static_assert(sizeof(struct slot) == 192, "tests/support/faults/shim.py reads slots of 192 bytes");
#define COUNTS_MAGIC 0x53544e554f435446ull

static struct rule rules[MAX_RULES];
static int rule_count;
static struct counts *counts;
static struct slot private_slot, *slot = &private_slot;
static char role[ROLE_BYTES];

static void refuse(const char *what, const char *where) {
  char text[400];
  int n = snprintf(text, sizeof text, "fault shim: %s: %s\n", what, where);
  syscall(SYS_write, 2, text, (size_t)n);
  _exit(99);
}

static unsigned kinds_named(const char *name) {
  for (int k = 0; k < K_COUNT; k++) if (!strcmp(name, KINDS[k])) return BIT(k);
  for (size_t g = 0; g < sizeof GROUPS / sizeof *GROUPS; g++) if (!strcmp(name, GROUPS[g].name)) return GROUPS[g].kinds;
  return 0;
}

static int parse_action(struct rule *r, char *text) {
  char *eq = strchr(text, '=');
  if (eq) {
    *eq = 0;
    r->arg = strtol(eq + 1, &eq, 10);
    r->is_percent = *eq == '%';
  }
  for (size_t i = 0; i < sizeof ACTIONS / sizeof *ACTIONS; i++)
    if (!strcmp(text, ACTIONS[i].name)) { r->act = ACTIONS[i].act; return 1; }
  char *late = strstr(text, "_AFTER");
  if (late) *late = 0;
  for (size_t i = 0; i < sizeof ERRORS / sizeof *ERRORS; i++)
    if (!strcmp(text, ERRORS[i].name)) {
      r->act = late ? A_ERROR_AFTER : A_ERROR;
      r->arg = ERRORS[i].number;
      return 1;
    }
  return 0;
}

static void parse_rule(char *text) {
  char whole[300];
  snprintf(whole, sizeof whole, "%s", text);
  if (rule_count == MAX_RULES) refuse("too many rules", whole);
  struct rule *r = &rules[rule_count++];
  memset(r, 0, sizeof *r);
  char *when = strchr(text, ':'), *action = when ? strchr(when + 1, ':') : NULL;
  if (!action) refuse("a rule is [role/]kind[@glob]:when:action", whole);
  *when++ = 0;
  *action++ = 0;
  char *glob = strchr(text, '@');
  if (glob) {
    *glob++ = 0;
    snprintf(r->glob, sizeof r->glob, "%s", glob);
  }
  char *kind = strchr(text, '/');
  if (kind) {
    *kind++ = 0;
    snprintf(r->role, sizeof r->role, "%s", text);
  } else kind = text;
  if (!(r->kinds = kinds_named(kind))) refuse("unknown kind of call", whole);
  char *end;
  r->from = r->until = strtol(when, &end, 10);
  if (*end == '+') r->until = LONG_MAX;
  else if (!strncmp(end, "..", 2)) r->until = strtol(end + 2, NULL, 10);
  if (r->from < 1 || r->until < r->from) refuse("calls are counted from 1", whole);
  if (!parse_action(r, action)) refuse("unknown action", whole);
}

static void take_slot(void) {
  for (int i = 0; i < rule_count; i++) rules[i].seen = 0;
  slot = &private_slot;
  memset(slot, 0, sizeof *slot);
  if (counts) {
    uint64_t n = __sync_fetch_and_add(&counts->next, 1);
    if (n >= MAX_SLOTS) refuse("too many processes for FAULTS_COUNTS", role);
    slot = &counts->slot[n];
  }
  memcpy(slot->role, role, sizeof role);
  slot->pid = (uint32_t)getpid();
}

static struct verdict decide(enum kind kind, const char *path) {
  struct verdict v = {A_NONE, 0, 0};
  __sync_fetch_and_add(&slot->count[kind], 1);
  for (int i = 0; i < rule_count; i++) {
    struct rule *r = &rules[i];
    if (!(r->kinds & BIT(kind)) || (r->role[0] && strcmp(r->role, role))) continue;
    if (r->glob[0] && fnmatch(r->glob, path, 0)) continue;
    long n = __sync_add_and_fetch(&r->seen, 1);
    if (n < r->from || n > r->until) continue;
    v = (struct verdict){r->act, r->arg, r->is_percent};
    __sync_fetch_and_add(&slot->struck, 1);
  }
  return v;
}

static size_t portion(struct verdict v, size_t whole) {
  size_t part = v.is_percent ? whole * (size_t)v.arg / 100 : (size_t)v.arg;
  return part < whole ? part : whole;
}
#endif
