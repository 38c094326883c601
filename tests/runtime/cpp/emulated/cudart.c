/* CUDA's runtime library for the tests: each function calls its hook, which emulated_gpu.py fills. */
#include <stddef.h>

#define HOOKED(name, parameters, arguments) \
    int(*hook_##name) parameters;           \
    int cuda##name parameters { return hook_##name arguments; }

typedef void *handle;

HOOKED(EventCreateWithFlags, (handle * event, unsigned flags), (event, flags))
HOOKED(EventDestroy, (handle event), (event))
HOOKED(EventElapsedTime, (float *milliseconds, handle start, handle end), (milliseconds, start, end))
HOOKED(EventRecord, (handle event, handle stream), (event, stream))
HOOKED(EventSynchronize, (handle event), (event))
HOOKED(Free, (void *memory), (memory))
HOOKED(FreeHost, (void *memory), (memory))
HOOKED(GetDevice, (int *index), (index))
HOOKED(GetDeviceCount, (int *count), (count))
HOOKED(GetLastError, (void), ())
HOOKED(GraphDestroy, (handle graph), (graph))
HOOKED(GraphExecDestroy, (handle graph), (graph))
HOOKED(GraphInstantiate, (handle * made, handle graph, unsigned long long flags), (made, graph, flags))
HOOKED(GraphLaunch, (handle graph, handle stream), (graph, stream))
HOOKED(Malloc, (void **memory, size_t size), (memory, size))
HOOKED(MallocHost, (void **memory, size_t size), (memory, size))
HOOKED(MemGetInfo, (size_t *free, size_t *total), (free, total))
HOOKED(Memcpy2DAsync,
       (void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t rows, int kind, handle stream),
       (to, to_pitch, from, from_pitch, width, rows, kind, stream))
HOOKED(MemcpyAsync, (void *to, const void *from, size_t size, int kind, handle stream), (to, from, size, kind, stream))
HOOKED(MemsetAsync, (void *memory, int value, size_t size, handle stream), (memory, value, size, stream))
HOOKED(SetDevice, (int index), (index))
HOOKED(StreamBeginCapture, (handle stream, int mode), (stream, mode))
HOOKED(StreamCreateWithFlags, (handle * stream, unsigned flags), (stream, flags))
HOOKED(StreamDestroy, (handle stream), (stream))
HOOKED(StreamEndCapture, (handle stream, handle *graph), (stream, graph))
HOOKED(StreamSynchronize, (handle stream), (stream))

int (*hook_ErrorText)(int status, char *text, size_t size);
const char *cudaGetErrorString(int status) {
    static char text[200];
    hook_ErrorText(status, text, sizeof text);
    return text;
}
