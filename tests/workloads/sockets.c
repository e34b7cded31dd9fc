/* sockets FOLDER: every call on sockets, over TCP and UDP (IPv4 and IPv6, loopback) and UNIX. */
#include "say.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/un.h>

union address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    struct sockaddr_un un;
};

static void ends(const char *name, const union address *a)
{
    char host[INET6_ADDRSTRLEN];
    printf(", \"%s\": ", name);
    if (a->any.sa_family == AF_UNIX) {
        text_of(a->un.sun_path[0] ? a->un.sun_path : a->un.sun_path + 1);
        return;
    }
    const void *bytes = a->any.sa_family == AF_INET ? (void *)&a->v4.sin_addr : (void *)&a->v6.sin6_addr;
    inet_ntop(a->any.sa_family, bytes, host, sizeof host);
    printf("[\"%s\", %d]", host, ntohs(a->v4.sin_port)); /* the port stands at the same place */
}

static long fact(const char *call, long fd, const union address *remote, long ret)
{
    say(call);
    number("fd", fd);
    if (remote)
        ends("address", remote);
    number("ret", ret);
    done();
    return ret;
}

static void messages(int from, int to)
{
    char buffer[32];
    struct iovec part = {"message", 7}, space = {buffer, sizeof buffer};
    struct msghdr out = {.msg_iov = &part, .msg_iovlen = 1};
    struct msghdr back = {.msg_iov = &space, .msg_iovlen = 1};
    struct mmsghdr outs = {.msg_hdr = out}, backs = {.msg_hdr = back};
    fact("sendto", from, NULL, kernel(syscall(SYS_sendto, from, "hello", 5L, 0, NULL, 0)));
    fact("recvfrom", to, NULL, kernel(syscall(SYS_recvfrom, to, buffer, 32L, 0, NULL, NULL)));
    fact("sendmsg", from, NULL, kernel(syscall(SYS_sendmsg, from, &out, 0)));
    fact("recvmsg", to, NULL, kernel(syscall(SYS_recvmsg, to, &back, 0)));
    fact("sendmmsg", from, NULL, kernel(syscall(SYS_sendmmsg, from, &outs, 1, 0)));
    fact("recvmmsg", to, NULL, kernel(syscall(SYS_recvmmsg, to, &backs, 1, 0, NULL)));
    fact("write", from, NULL, kernel(syscall(SYS_write, from, "plain", 5L)));
    fact("read", to, NULL, kernel(syscall(SYS_read, to, buffer, 32L)));
}

static void stream(union address at, socklen_t length, int four)
{
    int family = at.any.sa_family;
    int listener = fact("socket", -1, NULL, kernel(socket(family, SOCK_STREAM, 0)));
    if (listener < 0)
        return; /* no IPv6 here */
    fact("bind", listener, &at, kernel(bind(listener, &at.any, length)));
    fact("listen", listener, NULL, kernel(listen(listener, 4)));
    union address bound, local = {0};
    socklen_t size = sizeof bound;
    must(getsockname(listener, &bound.any, &size), "getsockname");
    int client = fact("socket", -1, NULL, kernel(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0)));
    fact("connect", client, &bound, kernel(connect(client, &bound.any, size)));
    size = sizeof local;
    must(getsockname(client, &local.any, &size), "getsockname");
    long server = four ? kernel(syscall(SYS_accept4, listener, NULL, NULL, SOCK_CLOEXEC))
                       : kernel(syscall(SYS_accept, listener, NULL, NULL));
    fact(four ? "accept4" : "accept", listener, family == AF_UNIX ? NULL : &local, server);
    messages(client, server);
    fact("shutdown", client, NULL, kernel(shutdown(client, SHUT_WR)));
    close(client);
    close(server);
    close(listener);
}

static void datagrams(union address at, socklen_t length)
{
    int family = at.any.sa_family;
    int server = fact("socket", -1, NULL, kernel(socket(family, SOCK_DGRAM, 0)));
    if (server < 0)
        return;
    fact("bind", server, &at, kernel(bind(server, &at.any, length)));
    union address bound;
    socklen_t size = sizeof bound;
    must(getsockname(server, &bound.any, &size), "getsockname");
    int client = fact("socket", -1, NULL, kernel(socket(family, SOCK_DGRAM, 0)));
    fact("sendto", client, &bound, kernel(sendto(client, "to you", 6, 0, &bound.any, size)));
    char buffer[32];
    fact("recvfrom", server, NULL, kernel(recv(server, buffer, sizeof buffer, 0)));
    fact("connect", client, &bound, kernel(connect(client, &bound.any, size)));
    messages(client, server);
    close(client);
    close(server);
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return 2;
    union address v4 = {.v4 = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}};
    union address v6 = {.v6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT}};
    union address un = {.un = {.sun_family = AF_UNIX}}, hidden = un;
    /* The address has room for 107 letters: a short name, in the folder. */
    must(chdir(argv[1]), argv[1]);
    strcpy(un.un.sun_path, "stream.sock");
    strcpy(hidden.un.sun_path + 1, "kcap abstract"); /* a leading NUL: no file */
    socklen_t named = offsetof(struct sockaddr_un, sun_path) + 14;
    stream(v4, sizeof v4.v4, 0);
    stream(v6, sizeof v6.v6, 1);
    stream(un, sizeof un.un, 0);
    stream(hidden, named, 1);
    datagrams(v4, sizeof v4.v4);
    datagrams(v6, sizeof v6.v6);
    int two[2];
    fact("socketpair", -1, NULL, kernel(socketpair(AF_UNIX, SOCK_STREAM, 0, two)));
    messages(two[0], two[1]);
    /* Nobody listens on a port that was just given back. */
    union address nobody = v4;
    socklen_t size = sizeof nobody;
    int fd = must(socket(AF_INET, SOCK_STREAM, 0), "socket");
    must(bind(fd, &v4.any, sizeof v4.v4), "bind");
    must(getsockname(fd, &nobody.any, &size), "getsockname");
    close(fd);
    fd = must(socket(AF_INET, SOCK_STREAM, 0), "socket");
    fact("connect", fd, &nobody, kernel(connect(fd, &nobody.any, size)));
    fact("connect", 99, &nobody, kernel(connect(99, &nobody.any, size)));
    return 0;
}
