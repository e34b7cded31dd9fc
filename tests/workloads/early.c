/* early FOLDER: opens a file, and connects sockets, then waits for a byte on standard input (the
 * recorder starts meanwhile), then reads and sends on what was opened before.
 */
#include "say.h"
#include <arpa/inet.h>
#include <netinet/in.h>

int main(int argc, char **argv)
{
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in here = {0};
    socklen_t length = sizeof there;
    char bytes[8];
    if (argc != 2)
        return 2;
    char *path = in(argv[1], "early");
    make(path, "opened before", 0644);
    int listener = must(socket(AF_INET, SOCK_STREAM, 0), "socket");
    must(bind(listener, (void *)&there, sizeof there), "bind");
    must(listen(listener, 1), "listen");
    must(getsockname(listener, (void *)&there, &length), "getsockname");
    int fd = must(open(path, O_RDONLY), path);
    int sock = must(socket(AF_INET, SOCK_STREAM, 0), "socket");
    must(connect(sock, (void *)&there, sizeof there), "connect");
    length = sizeof here;
    must(getsockname(sock, (void *)&here, &length), "getsockname");
    int accepted = must(accept(listener, NULL, NULL), "accept");
    say("ready");
    done();
    flush();
    must(read(0, bytes, 1), "stdin");
    say("read");
    number("fd", fd);
    text("path", path);
    number("ret", kernel(read(fd, bytes, sizeof bytes)));
    done();
    say("sendto");
    number("fd", sock);
    number("local_port", ntohs(here.sin_port));
    number("remote_port", ntohs(there.sin_port));
    number("ret", kernel(send(sock, "bytes", 5, 0)));
    done();
    say("recvfrom");
    number("fd", accepted);
    number("local_port", ntohs(there.sin_port));
    number("remote_port", ntohs(here.sin_port));
    number("ret", kernel(recv(accepted, bytes, sizeof bytes, 0)));
    done();
    return 0;
}
