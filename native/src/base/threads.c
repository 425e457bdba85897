/* Threads for the length of one call, and the two locks, over pthreads or Win32.
 *
 * A thread pool is started by a long call and stopped before it returns: an idle index owns no thread, a forked child inherits
 * none, and memory at rest is rows only.  Starting one costs some 20 us a thread, nothing beside the calls that use it. */
#include "base.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <process.h>
#include <windows.h>
typedef SRWLOCK os_mutex;
typedef CONDITION_VARIABLE os_cond;
typedef HANDLE os_thread;
static bool os_mutex_init(os_mutex *m) { return InitializeSRWLock(m), true; }
static void os_mutex_lock(os_mutex *m) { AcquireSRWLockExclusive(m); }
static void os_mutex_unlock(os_mutex *m) { ReleaseSRWLockExclusive(m); }
static void os_mutex_destroy(os_mutex *m) { (void)m; }
static bool os_cond_init(os_cond *c) { return InitializeConditionVariable(c), true; }
static void os_cond_wait(os_cond *c, os_mutex *m) { SleepConditionVariableSRW(c, m, INFINITE, 0); }
static void os_cond_broadcast(os_cond *c) { WakeAllConditionVariable(c); }
static void os_cond_destroy(os_cond *c) { (void)c; }
#define THREAD_RETURN unsigned __stdcall
#define THREAD_END 0
static bool os_thread_start(os_thread *t, unsigned(__stdcall *fn)(void *), void *arg) {
    *t = (HANDLE)_beginthreadex(NULL, 0, fn, arg, 0, NULL);
    return *t != NULL;
}
static void os_thread_join(os_thread t) {
    WaitForSingleObject(t, INFINITE);
    CloseHandle(t);
}
#else
#include <pthread.h>
typedef pthread_mutex_t os_mutex;
typedef pthread_cond_t os_cond;
typedef pthread_t os_thread;
static bool os_mutex_init(os_mutex *m) { return pthread_mutex_init(m, NULL) == 0; }
static void os_mutex_lock(os_mutex *m) { pthread_mutex_lock(m); }
static void os_mutex_unlock(os_mutex *m) { pthread_mutex_unlock(m); }
static void os_mutex_destroy(os_mutex *m) { pthread_mutex_destroy(m); }
static bool os_cond_init(os_cond *c) { return pthread_cond_init(c, NULL) == 0; }
static void os_cond_wait(os_cond *c, os_mutex *m) { pthread_cond_wait(c, m); }
static void os_cond_broadcast(os_cond *c) { pthread_cond_broadcast(c); }
static void os_cond_destroy(os_cond *c) { pthread_cond_destroy(c); }
#define THREAD_RETURN void *
#define THREAD_END NULL
/* Workers recurse nowhere and keep scratch on the heap; a small stack keeps address space and memory locks modest. */
#define WORKER_STACK_BYTES ((size_t)512 << 10)
static bool os_thread_start(os_thread *t, void *(*fn)(void *), void *arg) {
    pthread_attr_t attr;
    if (pthread_attr_init(&attr) != 0) return false;
    pthread_attr_setstacksize(&attr, WORKER_STACK_BYTES);
    int failed = pthread_create(t, &attr, fn, arg);
    pthread_attr_destroy(&attr);
    return failed == 0;
}
static void os_thread_join(os_thread t) { pthread_join(t, NULL); }
#endif

_Static_assert(sizeof(os_mutex) <= sizeof(mutex), "mutex.impl is too small for this platform's mutex");

bool mutex_init(mutex *m) { return os_mutex_init((os_mutex *)m->impl); }
void mutex_lock(mutex *m) { os_mutex_lock((os_mutex *)m->impl); }
void mutex_unlock(mutex *m) { os_mutex_unlock((os_mutex *)m->impl); }
void mutex_destroy(mutex *m) { os_mutex_destroy((os_mutex *)m->impl); }

/* ---- thread pool ---- */

struct thread_pool {
    uint32_t size;    /* workers, the caller included */
    uint32_t started; /* threads to join */
    os_thread *threads;
    os_mutex lock;
    os_cond wake, done;
    thread_pool_fn fn;
    void *context;
    uint32_t items;
    uint32_t next;        /* atomic: the next item to hand out */
    uint32_t busy;        /* started threads still at work on this run */
    uint32_t next_worker; /* numbers given to threads as they start */
    uint64_t run;         /* counts runs: threads wait for a change */
    bool stop;
};

static bool take(thread_pool *c, uint32_t worker) {
    uint32_t item = __atomic_fetch_add(&c->next, 1, __ATOMIC_RELAXED);
    if (item >= c->items) return false;
    c->fn(c->context, worker, item);
    return true;
}

static void work(thread_pool *c, uint32_t worker) {
    while (take(c, worker)) {}
}

static THREAD_RETURN thread_pool_main(void *arg) {
    thread_pool *c = arg;
    uint64_t seen = 0;
    os_mutex_lock(&c->lock);
    uint32_t worker = ++c->next_worker;
    for (;;) {
        while (c->run == seen && !c->stop) os_cond_wait(&c->wake, &c->lock);
        if (c->stop) break;
        seen = c->run;
        os_mutex_unlock(&c->lock);
        work(c, worker);
        os_mutex_lock(&c->lock);
        if (--c->busy == 0) os_cond_broadcast(&c->done);
    }
    os_mutex_unlock(&c->lock);
    return THREAD_END;
}

fvdb_status thread_pool_start(uint32_t threads, thread_pool **out, fvdb_diag *diag) {
    thread_pool *c = mem_alloc_array(1, sizeof *c);
    os_thread *handles = mem_alloc_array(threads, sizeof *handles);
    if (!c || !handles) {
        mem_free(c);
        mem_free(handles);
        return FAIL_MEMORY(diag);
    }
    c->size = threads;
    c->threads = handles;
    if (!os_mutex_init(&c->lock) || !os_cond_init(&c->wake) || !os_cond_init(&c->done)) {
        mem_free(handles);
        mem_free(c);
        return FAIL(diag, FVDB_ERR_THREAD, "a lock could not be created");
    }
    for (uint32_t i = 1; i < threads; i++) {
        if (!os_thread_start(&handles[c->started], thread_pool_main, c)) {
            thread_pool_stop(c);
            return FAIL_AT(diag, FVDB_ERR_THREAD, "a thread could not be started", 0, threads, i);
        }
        c->started++;
    }
    *out = c;
    return FVDB_OK;
}

void thread_pool_begin(thread_pool *c, thread_pool_fn fn, void *context, uint32_t items) {
    os_mutex_lock(&c->lock);
    assert(c->busy == 0 && !c->stop);
    c->fn = fn;
    c->context = context;
    c->items = items;
    c->next = 0;
    if (items > 1) {
        c->busy = c->started;
        c->run++;
        os_cond_broadcast(&c->wake);
    }
    os_mutex_unlock(&c->lock);
}

bool thread_pool_take(thread_pool *c) {
    /* No more than once behind the last item: a caller that asks for ever must not make the number wrap. */
    return __atomic_load_n(&c->next, __ATOMIC_RELAXED) < c->items && take(c, 0);
}

void thread_pool_drop(thread_pool *c) { __atomic_store_n(&c->next, c->items, __ATOMIC_RELAXED); }

void thread_pool_wait(thread_pool *c) {
    os_mutex_lock(&c->lock);
    while (c->busy) os_cond_wait(&c->done, &c->lock);
    os_mutex_unlock(&c->lock);
}

void thread_pool_run(thread_pool *c, thread_pool_fn fn, void *context, uint32_t items) {
    if (c->started == 0 || items < 2) {
        for (uint32_t i = 0; i < items; i++) fn(context, 0, i);
        return;
    }
    thread_pool_begin(c, fn, context, items);
    work(c, 0);
    thread_pool_wait(c);
}

uint32_t thread_pool_size(const thread_pool *c) { return c->size; }

void thread_pool_stop(thread_pool *c) {
    if (!c) return;
    os_mutex_lock(&c->lock);
    c->stop = true;
    os_cond_broadcast(&c->wake);
    os_mutex_unlock(&c->lock);
    for (uint32_t i = 0; i < c->started; i++) os_thread_join(c->threads[i]);
    os_cond_destroy(&c->wake);
    os_cond_destroy(&c->done);
    os_mutex_destroy(&c->lock);
    mem_free(c->threads);
    mem_free(c);
}

/* ---- reader/writer lock ---- */

/* Built from a mutex and a condition rather than the platform's lock: glibc's default prefers readers, and a stream of
 * searches would keep a writer out for ever. */
struct rwlock {
    os_mutex lock;
    os_cond changed;
    uint32_t readers;
    uint32_t writers_waiting;
    bool writing;
};

rwlock *rwlock_new(void) {
    rwlock *l = mem_alloc_array(1, sizeof *l);
    if (!l) return NULL;
    if (!os_mutex_init(&l->lock) || !os_cond_init(&l->changed)) {
        mem_free(l);
        return NULL;
    }
    return l;
}

void rwlock_free(rwlock *l) {
    if (!l) return;
    os_cond_destroy(&l->changed);
    os_mutex_destroy(&l->lock);
    mem_free(l);
}

void rwlock_read(rwlock *l) {
    os_mutex_lock(&l->lock);
    while (l->writing || l->writers_waiting) os_cond_wait(&l->changed, &l->lock);
    l->readers++;
    os_mutex_unlock(&l->lock);
}

bool rwlock_try_read(rwlock *l) {
    os_mutex_lock(&l->lock);
    bool free = !l->writing && !l->writers_waiting;
    if (free) l->readers++;
    os_mutex_unlock(&l->lock);
    return free;
}

void rwlock_read_done(rwlock *l) {
    os_mutex_lock(&l->lock);
    assert(l->readers > 0 && !l->writing);
    if (--l->readers == 0 && l->writers_waiting) os_cond_broadcast(&l->changed);
    os_mutex_unlock(&l->lock);
}

void rwlock_write(rwlock *l) {
    os_mutex_lock(&l->lock);
    l->writers_waiting++;
    while (l->writing || l->readers) os_cond_wait(&l->changed, &l->lock);
    l->writers_waiting--;
    assert(l->readers == 0 && !l->writing);
    l->writing = true;
    os_mutex_unlock(&l->lock);
}

void rwlock_write_done(rwlock *l) {
    os_mutex_lock(&l->lock);
    assert(l->writing && l->readers == 0);
    l->writing = false;
    os_cond_broadcast(&l->changed);
    os_mutex_unlock(&l->lock);
}
