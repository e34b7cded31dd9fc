/* burst CHILD N: N short-lived processes, one after the other, each with arguments of its own. */
#include "say.h"

static char order[16], name[96];

static void arguments(int i, int count)
{
    const char *tail = "abcdefghijklmnopqrstuvwxyz0123456789ABCD";
    snprintf(order, sizeof order, "%d", i);
    snprintf(name, sizeof name, "%d of %d \"%.*s\"", i, count, i % 40, tail);
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    int count = atoi(argv[2]);
    pid_t *pids = calloc(count, sizeof *pids);
    int *statuses = calloc(count, sizeof *statuses);
    for (int i = 0; i < count; i++) {
        char *words[] = {argv[1], order, name, NULL};
        arguments(i, count);
        char *environment[] = {"LD_KCAP=1", "OTHER=2", NULL};
        pid_t pid = vfork();
        if (!pid) {
            execve(argv[1], words, environment);
            _exit(127);
        }
        pids[i] = must(pid, "vfork");
        must(waitpid(pid, &statuses[i], 0), "waitpid");
    }
    for (int i = 0; i < count; i++) {
        char *words[] = {argv[1], order, name, NULL};
        arguments(i, count);
        say("exec");
        number("child", pids[i]);
        texts("argv", words);
        number("status", statuses[i]);
        done();
    }
    return 0;
}
