// Linked into every program, together with jemalloc (cmake/BlockserveTargets.cmake): what one
// thread makes and another frees, as nearly every message here, costs it a fraction of what it
// costs glibc's malloc, and what a burst of calls has freed goes back to the system. In glibc's
// arenas it stays.

// jemalloc reads this before main. The variable MALLOC_CONF of the environment adds to it, and
// wins.
// - background_thread: memory goes back also while nobody calls malloc.
// - max_background_threads: jemalloc's first such thread starts the others, and where the process
//   may have no more threads it tries again at once, for ever, a line each time.
// - dirty_decay_ms: what has not been used again for about so long goes back.
extern "C" {
const char* malloc_conf = "background_thread:true,max_background_threads:1,dirty_decay_ms:1000";
}
