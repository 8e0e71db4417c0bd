/* The step as a custom call of XLA, for frankenstein/xla.py: arrays in, arrays out, on XLA's own threads.

   Operands: the numbers of options_t as float32; then for each tensor gradient, m, v and x. Results: for each tensor the
   displacement of the parameters, m, v and x. All but the numbers are float32 of the same n elements.

   The structures below are what XLA's foreign-function interface (version 0.1 and later) hands over, as far as it is read here.
   Their sizes come with them, and a frame that is too small is refused; XLA itself refuses other versions. */

typedef struct {
    size_t size;
    void *extensions;
    int32_t major, minor;
} xla_version_t;

typedef struct xla_error xla_error;

typedef struct {
    size_t size;
    void *extensions, *context;
    void (*task)(void *);
    void *argument;
} xla_schedule_t;

typedef struct {
    size_t size;
    void *extensions;
    xla_error *error;
} xla_destroy_t;

typedef struct {
    size_t size;
    void *extensions;
    const char *message;
    int32_t code;
} xla_create_t;

enum { XLA_CREATE_ERROR = 0, XLA_DESTROY_ERROR = 2, XLA_SCHEDULE = 11, XLA_INTERNAL = 13 /* an error's code */ };

typedef struct {
    size_t size;
    void *extensions;
    xla_version_t version;
    const void *internal;
    void *functions[XLA_SCHEDULE + 1];
} xla_api_t;

typedef struct {
    size_t size;
    void *extensions;
    int32_t type;
    void *data;
    int64_t rank;
    int64_t *shape;
} xla_buffer_t;

typedef struct {
    size_t size;
    void *extensions;
    int64_t n;
    int32_t *types;
    xla_buffer_t **buffers;
} xla_buffers_t;

typedef struct xla_extension {
    size_t size;
    int32_t type;
    struct xla_extension *next;
    struct {
        size_t size;
        xla_version_t version;
    } *metadata; /* where the type is 1 */
} xla_extension_t;

typedef struct {
    size_t size;
    xla_extension_t *extensions;
    const xla_api_t *api;
    void *context;
    int32_t stage;
    xla_buffers_t operands, results;
} xla_frame_t;

static xla_error *xla_failed(const xla_frame_t *frame, const char *message)
{
    xla_create_t arguments = {sizeof arguments, NULL, message, XLA_INTERNAL};
    return ((xla_error * (*)(xla_create_t *)) frame->api->functions[XLA_CREATE_ERROR])(&arguments);
}

/* Help with the work if there is any left: the caller does not wait for those who have not begun. */
static void help(void *argument)
{
    work_t *work = argument;
    take(work);
    if (__atomic_sub_fetch(&work->users, 1, __ATOMIC_ACQ_REL) == 0) free(work);
}

static void take_with_xla(work_t *work, const xla_frame_t *frame, int64_t n_helpers)
{
    const xla_api_t *api = frame->api;
    for (int64_t i = 0; i < n_helpers; i++) {
        __atomic_add_fetch(&work->users, 1, __ATOMIC_ACQ_REL);
        xla_schedule_t arguments = {sizeof arguments, NULL, frame->context, help, work};
        xla_error *error = ((xla_error * (*)(xla_schedule_t *)) api->functions[XLA_SCHEDULE])(&arguments);
        if (error) { /* no threads: all is done here */
            xla_destroy_t destroyed = {sizeof destroyed, NULL, error};
            ((void (*)(xla_destroy_t *))api->functions[XLA_DESTROY_ERROR])(&destroyed);
            __atomic_sub_fetch(&work->users, 1, __ATOMIC_ACQ_REL);
            break;
        }
    }
    take(work);
    while (__atomic_load_n(&work->n_done, __ATOMIC_ACQUIRE) < work->n_pieces) yield();
}

static int64_t n_elements(const xla_buffer_t *buffer)
{
    int64_t n = 1;
    for (int64_t i = 0; i < buffer->rank; i++) n *= buffer->shape[i];
    return n;
}

static options_t options_from(const float *numbers)
{
    options_t options;
    float *floats = (float *)&options;
    for (int i = 0; i < N_FLOATS; i++) floats[i] = numbers[i];
    options.rho_of_second_moment = numbers[N_FLOATS] != 0.0f;
    options.skip = numbers[N_FLOATS + 1] != 0.0f;
    return options;
}

/* The handler: one step of all tensors. At a learning rate of 0 nothing moves and the state stays. */
EXPORT xla_error *frankenstein_xla_step(xla_frame_t *frame)
{
    for (xla_extension_t *one = frame->extensions; one; one = one->next)
        if (one->type == 1) { /* XLA asks for which version this was written */
            one->metadata->version.major = 0;
            one->metadata->version.minor = 1;
            return NULL;
        }
    const xla_buffers_t *in = &frame->operands, *out = &frame->results;
    int64_t n_tensors = out->n / 4;
    if (frame->size < sizeof *frame || in->n != 1 + 4 * n_tensors || n_elements(in->buffers[0]) != N_FLOATS + 2)
        return xla_failed(frame, "frankenstein_xla_step: other operands than it knows");

    options_t options = options_from(in->buffers[0]->data);
    int is_pause = options.x_0 == 0.0f; /* x_0 is the learning rate */
    size_t size = sizeof(work_t) + (size_t)n_tensors * (sizeof(tensor_t) + sizeof(int64_t)) + sizeof(int64_t);
    work_t *work = malloc(size);
    if (!work) return xla_failed(frame, "frankenstein_xla_step: no memory for a step");
    tensor_t *tensors = (tensor_t *)(work + 1);
    for (int64_t i = 0; i < n_tensors; i++) {
        xla_buffer_t **ours = in->buffers + 1 + 4 * i, **theirs = out->buffers + 4 * i;
        int64_t n = n_elements(ours[0]);
        for (int k = 1; k < 4; k++) /* where the state is not kept in place */
            if (theirs[k]->data != ours[k]->data) memcpy(theirs[k]->data, ours[k]->data, (size_t)n * 4);
        if (is_pause) memset(theirs[0]->data, 0, (size_t)n * 4);
        tensors[i] = (tensor_t){.theta = (int64_t)theirs[0]->data, .grad = (int64_t)ours[0]->data,
                                .m = (int64_t)theirs[1]->data, .v = (int64_t)theirs[2]->data,
                                .x = (int64_t)theirs[3]->data, .n = n, .row = n, .param_type = DISPLACEMENT};
    }
    *work = work_on(tensors, n_tensors, (int64_t *)(tensors + n_tensors), &options, frankenstein_best_set());
    if (!is_pause) {
        int64_t n_threads = n_processors();
        n_threads = work->n_pieces < n_threads ? work->n_pieces : n_threads;
        take_with_xla(work, frame, n_threads - 1);
    }
    if (__atomic_sub_fetch(&work->users, 1, __ATOMIC_ACQ_REL) == 0) free(work);
    return NULL;
}
