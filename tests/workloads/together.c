/* together N THREADS: N processes, whose threads all end at the same moment. */
#include "say.h"
#include <pthread.h>

static pthread_barrier_t barrier;

static void *end(void *nothing)
{
    pthread_barrier_wait(&barrier);
    return nothing;
}

static void child(unsigned threads)
{
    pthread_t thread;
    pthread_barrier_init(&barrier, NULL, threads + 1);
    for (unsigned i = 0; i < threads; i++)
        pthread_create(&thread, NULL, end, NULL);
    pthread_barrier_wait(&barrier);
    pthread_exit(NULL);
}

int main(int count, char **words)
{
    int processes = atoi(words[1]), threads = atoi(words[count - 1]);
    for (int i = 0; i < processes; i++) {
        int pid = fork();
        if (!pid)
            child(threads);
        waitpid(pid, NULL, 0);
        say("wait");
        number("child", pid);
        done();
    }
    return 0;
}
