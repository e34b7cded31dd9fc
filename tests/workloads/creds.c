/* creds: every call that changes credentials, each in a process of its own; needs root. */
#include "say.h"
#include <grp.h>
#include <linux/capability.h>
#include <sys/fsuid.h>

#define STEP(call, ...)                                       \
    do {                                                      \
        flush();                                              \
        pid_t child = must(fork(), "fork");                   \
        if (!child) {                                         \
            long got = kernel(syscall(SYS_##call, ##__VA_ARGS__)); \
            uid_t r, e, s;                                    \
            gid_t rg, eg, sg;                                 \
            getresuid(&r, &e, &s);                            \
            getresgid(&rg, &eg, &sg);                         \
            say(#call);                                       \
            number("ret", got);                               \
            number("ruid", r), number("euid", e), number("suid", s); \
            number("rgid", rg), number("egid", eg), number("sgid", sg); \
            done();                                           \
            flush();                                          \
            _exit(0);                                         \
        }                                                     \
        must(waitpid(child, NULL, 0), "waitpid");             \
    } while (0)

int main(void)
{
    gid_t groups[] = {7001, 7002};
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct caps[2] = {
        {.effective = 1 << CAP_CHOWN, .permitted = 1 << CAP_CHOWN | 1 << CAP_KILL},
    };
    STEP(setuid, 6001);
    STEP(setgid, 6002);
    STEP(setreuid, 6003, 6004);
    STEP(setregid, 6005, 6006);
    STEP(setresuid, 6007, 6008, 6009);
    STEP(setresgid, 6010, 6011, 6012);
    STEP(setfsuid, 6013);
    STEP(setfsgid, 6014);
    STEP(setgroups, 2L, groups);
    STEP(capset, &head, caps);
    /* Who is no longer root may not become it again. */
    flush();
    pid_t child = must(fork(), "fork");
    if (!child) {
        must(setuid(6015), "setuid");
        say("setuid");
        number("uid", 0);
        number("ret", kernel(setuid(0)));
        done();
        flush();
        _exit(0);
    }
    must(waitpid(child, NULL, 0), "waitpid");
    return 0;
}
