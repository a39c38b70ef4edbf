// What a program sees to before anything else: called by whatever reads its flags.
#ifndef BLOCKSERVE_COMMON_PREPARE_PROCESS_H_
#define BLOCKSERVE_COMMON_PREPARE_PROCESS_H_

namespace blockserve {

// A process that ends for want of memory or of threads, or by a mapped file that was cut short,
// says so from now on. And whatever is linked with this has opened those of descriptors 0 to 2 that
// were closed, as what nothing can be read from or written to: else the next socket would be one of
// them, and the log be written into it.
void PrepareProcess();

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_PREPARE_PROCESS_H_
