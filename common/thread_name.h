// Names of threads, as `top -H` and debuggers show them.
#ifndef BLOCKSERVE_COMMON_THREAD_NAME_H_
#define BLOCKSERVE_COMMON_THREAD_NAME_H_

#include <pthread.h>

namespace blockserve {

// Of the calling thread; at most 15 characters.
inline void SetThreadName(const char* name) { pthread_setname_np(pthread_self(), name); }

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_THREAD_NAME_H_
