/* pairs CHILD N: N times a short-lived process and a connection over loopback. */
#include "say.h"
#include <arpa/inet.h>
#include <netinet/in.h>

int main(int argc, char **argv)
{
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof there;
    if (argc != 3)
        return 2;
    int count = atoi(argv[2]);
    int listener = must(socket(AF_INET, SOCK_STREAM, 0), "socket");
    must(bind(listener, (void *)&there, sizeof there), "bind");
    must(listen(listener, 16), "listen");
    must(getsockname(listener, (void *)&there, &length), "getsockname");
    for (int i = 0; i < count; i++) {
        struct sockaddr_in here = {0};
        char order[16];
        snprintf(order, sizeof order, "%d", i);
        char *words[] = {argv[1], order, "pair", NULL};
        char *none[] = {NULL};
        pid_t pid = vfork();
        if (!pid) {
            execve(argv[1], words, none);
            _exit(127);
        }
        must(pid, "vfork");
        must(waitpid(pid, NULL, 0), "waitpid");
        int fd = must(socket(AF_INET, SOCK_STREAM, 0), "socket");
        long ret = kernel(connect(fd, (void *)&there, sizeof there));
        length = sizeof here;
        must(getsockname(fd, (void *)&here, &length), "getsockname");
        int accepted = must(accept(listener, NULL, NULL), "accept");
        /* The end that closes first waits in TIME_WAIT: reset instead, ports are few. */
        struct linger now = {.l_onoff = 1};
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
        close(fd);
        close(accepted);
        say("pair");
        number("child", pid);
        texts("argv", words);
        number("fd", fd);
        number("ret", ret);
        number("local_port", ntohs(here.sin_port));
        number("remote_port", ntohs(there.sin_port));
        done();
    }
    return 0;
}
