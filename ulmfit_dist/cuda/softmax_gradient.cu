// Cross-entropy of rows of logits, which are overwritten by its gradient: `(softmax - onehot) * scale`.
//
// A thread block reads a row twice: first for its maximum and the sum of exponentials, then to write the gradient. Sums are
// in fp32 and in a fixed order, so results are deterministic. The host defines LOGITS_FP32, LOGITS_FP16 or LOGITS_BF16.
// Conversions are implemented here because NVRTC has no CUDA headers if only torch's wheels are installed.

#if defined(LOGITS_FP32)
typedef float Logit;
static __device__ float to_float(Logit x) { return x; }
static __device__ Logit from_float(float x) { return x; }
#elif defined(LOGITS_BF16)
typedef unsigned short Logit;
static __device__ float to_float(Logit x) { return __uint_as_float((unsigned)x << 16); }
static __device__ Logit from_float(float x) {  // round to nearest, ties to even
    unsigned bits = __float_as_uint(x);
    if (x != x) return (Logit)0x7FC0;
    return (Logit)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}
#elif defined(LOGITS_FP16)
typedef unsigned short Logit;
#ifdef __CUDA_ARCH__  // tests compile this file for a CPU, with their own versions of these two functions
static __device__ float fp16_to_float(Logit x) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x));
    return wide;
}
static __device__ Logit float_to_fp16(float x) {
    Logit narrow;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow) : "f"(x));
    return narrow;
}
#endif
static __device__ float to_float(Logit x) { return fp16_to_float(x); }
static __device__ Logit from_float(float x) { return float_to_fp16(x); }
#endif

#define LOWEST -3.402823466e38f
#define PACK (16 / (int)sizeof(Logit))

struct __align__(16) Pack {
    Logit values[PACK];
};

static __device__ void add_exponential(float x, float& most, float& sum) {
    if (x > most) {
        sum = sum * expf(most - x) + 1;
        most = x;
    } else {
        sum += expf(x - most);
    }
}

static __device__ void merge(float& most, float& sum, float other_most, float other_sum) {
    float larger = fmaxf(most, other_most);
    sum = sum * expf(most - larger) + other_sum * expf(other_most - larger);
    most = larger;
}

extern "C" __global__ void softmax_gradient(Logit* logits, const long long* targets, float* losses, int num_words,
                                            double scale) {
    __shared__ float mosts[THREADS], sums[THREADS];
    Logit* row = logits + (long long)blockIdx.x * num_words;
    int thread = threadIdx.x, target = (int)targets[blockIdx.x];
    int num_packs = num_words % PACK ? 0 : num_words / PACK;  // rows of other widths are not aligned to 16 bytes
    Pack* packs = (Pack*)row;

    float most = LOWEST, sum = 0;
    for (int i = thread; i < num_packs; i += THREADS) {
        Pack pack = packs[i];
        for (int j = 0; j < PACK; j++) add_exponential(to_float(pack.values[j]), most, sum);
    }
    for (int i = num_packs * PACK + thread; i < num_words; i += THREADS) add_exponential(to_float(row[i]), most, sum);
    mosts[thread] = most;
    sums[thread] = sum;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (thread < half) merge(mosts[thread], sums[thread], mosts[thread + half], sums[thread + half]);
        __syncthreads();
    }

    most = mosts[0];
    sum = sums[0];
    if (thread == 0) {
        bool is_word = target >= 0 && target < num_words;  // else the loss is NaN, without a read out of bounds
        losses[blockIdx.x] = is_word ? logf(sum) + (most - to_float(row[target])) : logf(-1.0f);
    }
    __syncthreads();
    float factor = (float)scale / sum;
    for (int i = thread; i < num_packs; i += THREADS) {
        Pack pack = packs[i];
        for (int j = 0; j < PACK; j++) {
            float p = expf(to_float(pack.values[j]) - most);
            pack.values[j] = from_float(p * factor - (i * PACK + j == target ? (float)scale : 0));
        }
        packs[i] = pack;
    }
    for (int i = num_packs * PACK + thread; i < num_words; i += THREADS) {
        float p = expf(to_float(row[i]) - most);
        row[i] = from_float(p * factor - (i == target ? (float)scale : 0));
    }
}
