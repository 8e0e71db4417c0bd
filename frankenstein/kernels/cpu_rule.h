/* The rule of frankenstein/rule.py, on float32 arrays, for one instruction set.

   Included by cpu.c once for each set, with

       NAME(f)       the function's name for the set
       TARGET        the attribute that allows the set
       FMA(a, b, c)  a * b + c, in one rounding where the set has it

   Every element goes through the same operations whether it is in the body or in the tail of a vector loop, so how
   parameters are split changes no bit: no reassociation, no contraction but FMA (cpu.c is compiled with
   -ffp-contract=off). docs/kernels.md derives the polynomials and has their errors. */

/* exp(-y), 0 <= y <= 40. Cody and Waite: y = k ln 2 - r, a polynomial on |r| <= ln 2 / 2, and k into the exponent. */
INLINE float NAME(exp_neg)(float y)
{
    const float shift = 12582912.0f; /* 1.5 * 2^23: adding it leaves round(x) in the low bits */
    float k = FMA(y, -1.44269504f, shift);
    uint32_t power = bits_of(k);
    k -= shift;
    float r = FMA(k, -0.693359375f, -y);
    r = FMA(k, 2.12194440e-4f, r);
    float p = 0.00138198119f;
    p = FMA(p, r, 0.0083686877f);
    p = FMA(p, r, 0.0416682772f);
    p = FMA(p, r, 0.166665211f);
    p = FMA(p, r, 0.49999994f);
    p = FMA(p * r, r, r) + 1.0f;
    return p * float_of((power << 23) + (127u << 23)); /* a NaN times whatever is a NaN */
}

/* exp(-y), y >= 0: a polynomial of its own for y < 0.8, which is all that most blocks need. */
INLINE float NAME(decay)(float y, int is_small)
{
    float q = 0.000964232546f;
    q = FMA(q, y, -0.00794009864f);
    q = FMA(q, y, 0.041488979f);
    q = FMA(q, y, -0.166628912f);
    q = FMA(q, y, 0.499997079f);
    float near = FMA(y * y, q, 1.0f - y);
    if (is_small) return near;
    float far = NAME(exp_neg)(y > 40.0f ? 40.0f : y);
    return y < 0.8f ? near : far;
}

/* 0.5 - P = gd(m g) / pi of eq. 4, gd(z) = 2 atan(tanh(z / 2)): an odd polynomial for |z| < 1, beyond it
   1/2 - (2 / pi) atan(exp(-|z|)); neither cancels. */
INLINE float NAME(align)(float m, float g, int is_small)
{
    float z = m * g;
    float s = z * z;
    float p = 4.72875181e-05f;
    p = FMA(p, s, -0.00030554313f);
    p = FMA(p, s, 0.00115663267f);
    p = FMA(p, s, -0.00383375818f);
    p = FMA(p, s, 0.0132599557f);
    p = FMA(p, s, -0.0530514717f);
    p = FMA(p, s, 1.11408154e-08f); /* the part of 1 / pi that its float32 lacks */
    float near = FMA(z, 0.318309873f, z * p);
    if (is_small) return near;

    float size = fabs_of(z);
    float t = NAME(exp_neg)(size > 20.0f ? 20.0f : size); /* there P is 0 or 1 in float32 */
    float u = t * t;
    float q = 0.052338969f;
    q = FMA(q, u, -0.0885188878f);
    q = FMA(q, u, 0.127178282f);
    q = FMA(q, u, -0.212202951f);
    q = FMA(q, u, 0.636619747f);
    float far = FMA(-q, t, 0.5f);
    return size < 1.0f ? near : copy_sign(far, z);
}

/* log(e + s) = 1 + log1p(s / e) of eq. 5, -0.5 <= s <= 0.414 e: near e, where the logarithm is smooth. */
INLINE float NAME(log_e_plus)(float s)
{
    float t = s * 0.36787944f;
    float p = 0.0513953269f;
    p = FMA(p, t, -0.113550059f);
    p = FMA(p, t, 0.145484999f);
    p = FMA(p, t, -0.167750165f);
    p = FMA(p, t, 0.20000039f);
    p = FMA(p, t, -0.249974608f);
    p = FMA(p, t, 0.333332747f);
    p = FMA(p, t, -0.500000179f);
    return 1.0f + FMA(p * t, t, t);
}

INLINE factors_t NAME(factors)(float g, float m, float v, float x, const options_t *o, int rho_of_second_moment,
                              int is_small)
{
    factors_t f;
    x = x == 0.0f ? o->x_0 : x;
    f.x_t = FMA(g, g, o->eps);
    f.align = NAME(align)(m, g, is_small);
    f.v_hat = f.x_t > v ? f.x_t : v; /* a NaN in v stays, as in every maximum of the array libraries */
    f.root = __builtin_sqrtf(f.v_hat);

    float slack = (rho_of_second_moment ? f.root : __builtin_sqrtf(f.x_t)) + f.align;
    slack = slack < o->slack_low ? o->slack_low : slack;
    slack = slack > o->slack_high ? o->slack_high : slack;
    f.rho = NAME(log_e_plus)(slack);

    float e = NAME(decay)(fabs_of((x - 0.5f) + f.align), is_small);
    f.xi_inverse = 1.0f + e; /* XI_GAIN / xi of eq. 13, and what the sum has lost */
    f.xi_inverse_low = e - (f.xi_inverse - 1.0f);

    float ratio = f.x_t / x;
    ratio = ratio > o->ratio_limit ? o->ratio_limit : ratio;
    f.w = ratio * fabs_of(f.align);
    return f;
}

/* lr xi g / sqrt(v_hat), with one correction for what product, sum and quotient have lost. */
INLINE float NAME(scaled)(float g, const factors_t *f, const options_t *o)
{
    float a = f->xi_inverse, above = o->lr_gain * g, below = a * f->root, inverse = 1.0f / below, d = above * inverse;
    float above_low = FMA(o->lr_gain_low, g, FMA(o->lr_gain, g, -above));
    float root_low = FMA(-f->root, f->root, f->v_hat) * (0.5f * a * inverse); /* v_hat - root^2 over 2 root */
    float below_low = FMA(f->xi_inverse_low, f->root, FMA(a, f->root, -below));
    below_low = FMA(a, root_low, below_low);
    return FMA(FMA(-d, below_low, FMA(-d, below, above) + above_low), inverse, d);
}

/* Whether |m g| < 1, x < 1 and g is usable in all of n elements: then what is beyond that need not be computed, and the
   bits are the same. Compared as integers, in whose order a NaN is the largest. */
INLINE int NAME(is_small)(int64_t n, const float *grad, const float *m, const float *x, const options_t *o)
{
    uint32_t largest = bits_of(o->x_0), largest_grad = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t z = bits_of(fabs_of(m[i] * grad[i])), before = bits_of(x[i]), g = bits_of(fabs_of(grad[i]));
        z = z > before ? z : before;
        largest = z > largest ? z : largest;
        largest_grad = g > largest_grad ? g : largest_grad;
    }
    return largest < bits_of(1.0f) && largest_grad <= bits_of(o->grad_limit);
}

/* One step of n elements in place; g is read only. */
INLINE void NAME(step)(int64_t n, float *restrict theta, const float *restrict grad, float *restrict m_,
                       float *restrict v_, float *restrict x_, const options_t *o, int rho_of_second_moment, int skip,
                       int is_small)
{
    const options_t options = *o; /* a copy that no store can alias */
    for (int64_t i = 0; i < n; i++) {
        float g = options.sign * grad[i], m = m_[i], v = v_[i], x = x_[i], th = theta[i];
        int usable = !skip | (fabs_of(g) <= options.grad_limit); /* false for NaN */
        g = usable ? g : 0.0f;
        factors_t f = NAME(factors)(g, m, v, x, &options, rho_of_second_moment, is_small);
        float d = NAME(scaled)(g, &f, &options);
        float m_next = FMA(f.rho * options.beta1, m, -d);
        float v_next = FMA(-f.w, f.v_hat - f.x_t, f.v_hat);
        float delta = FMA(f.rho * options.beta1_squared, m, -FMA(options.beta1, d, d)); /* beta1 m_next - d */
        float moved = FMA(th, options.decay, delta);
        m_[i] = usable ? m_next : m;
        v_[i] = usable ? v_next : v;
        x_[i] = usable ? f.x_t : x;
        theta[i] = usable ? moved : th;
    }
}

/* One block, with what is the same for all its elements taken out of the loop. */
TARGET static void NAME(step_block)(int64_t n, float *theta, const float *grad, float *m, float *v, float *x,
                                    const options_t *o)
{
    int is_small = NAME(is_small)(n, grad, m, x, o);
    if (o->rho_of_second_moment) {
        if (is_small) NAME(step)(n, theta, grad, m, v, x, o, 1, 0, 1);
        else if (o->skip) NAME(step)(n, theta, grad, m, v, x, o, 1, 1, 0);
        else NAME(step)(n, theta, grad, m, v, x, o, 1, 0, 0);
    } else {
        if (is_small) NAME(step)(n, theta, grad, m, v, x, o, 0, 0, 1);
        else if (o->skip) NAME(step)(n, theta, grad, m, v, x, o, 0, 1, 0);
        else NAME(step)(n, theta, grad, m, v, x, o, 0, 0, 0);
    }
}

/* Blocks first to last of a tensor. */
TARGET static void NAME(blocks)(const tensor_t *t, int64_t first, int64_t last, const options_t *o)
{
    if (t->param_type == FLOAT32 && t->state_type == FLOAT32) { /* rows do not matter: one long one */
        int64_t start = first * BLOCK, end = last * BLOCK < t->n ? last * BLOCK : t->n;
        for (; start < end; start += BLOCK)
            NAME(step_block)(end - start < BLOCK ? end - start : BLOCK, (float *)t->theta + start,
                             (const float *)t->grad + start, (float *)t->m + start, (float *)t->v + start,
                             (float *)t->x + start, o);
        return;
    }
    if (t->param_type == DISPLACEMENT) {
        int64_t start = first * BLOCK, end = last * BLOCK < t->n ? last * BLOCK : t->n;
        for (; start < end; start += BLOCK) {
            int64_t n = end - start < BLOCK ? end - start : BLOCK;
            float grad[BLOCK], *theta = (float *)t->theta + start; /* a copy, because the two may be one array */
            memcpy(grad, (const float *)t->grad + start, n * 4);
            memset(theta, 0, n * 4);
            NAME(step_block)(n, theta, grad, (float *)t->m + start, (float *)t->v + start, (float *)t->x + start, o);
        }
        return;
    }
    int64_t per_row = (t->row + BLOCK - 1) / BLOCK;
    for (int64_t block = first; block < last; block++) {
        int64_t in_row = block % per_row * BLOCK, left = t->row - in_row;
        mixed_block(t, block, block / per_row * t->row + in_row, left < BLOCK ? left : BLOCK, o, NAME(step_block));
    }
}

TARGET static void NAME(factors_of)(int64_t n, const float *grad, const float *m, const float *v, const float *x,
                                    const options_t *o, float *out)
{
    for (int64_t i = 0; i < n; i++) {
        factors_t f = NAME(factors)(o->sign * grad[i], m[i], v[i], x[i], o, o->rho_of_second_moment, 0);
        float xi = o->xi_gain / f.xi_inverse;
        xi = FMA(-xi, f.xi_inverse_low / f.xi_inverse, xi); /* as in `scaled` */
        float values[] = {f.x_t, f.v_hat, f.align, f.rho, xi, f.w};
        for (int k = 0; k < 6; k++) out[k * n + i] = values[k];
    }
}

#undef NAME
#undef TARGET
#undef FMA
