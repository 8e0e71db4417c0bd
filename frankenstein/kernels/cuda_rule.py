"""The rule of frankenstein/rule.py in Triton, for cuda.py: 1,024 elements of one tensor in one program.

The arithmetic is that of cpu_rule.h, operation by operation, and so are the bits, where that has a fused multiply-add:
no product and sum are contracted but in `tl.fma`, and roots and quotients are rounded as IEEE 754 has it, by Newton's
method without a branch, for half of what the compiler's own cost. docs/kernels.md derives the polynomials. Formats of
small state are described in state.py.

What bounds a step is read off the compiled code. An element of float32 is 36 bytes of memory traffic and 130
instructions, and an H200 can issue 220 in the time of the traffic: memory does. Small state is bound by instructions: 8
bits take 230 for 18 bytes, and so about as long as float32.
"""

import numpy as np
import triton
import triton.language as tl

from frankenstein import rule

BLOCK = tl.constexpr(256)  # elements that share an exponent in 8-bit state
BLOCKS = tl.constexpr(4)  # that one program takes; with a warp for each, their largest number needs no shared memory
COLUMNS = tl.constexpr(11)  # of the table that cuda.py makes
XI_GAIN = tl.constexpr(float(np.float32(rule.XI_GAIN)))
XI_GAIN_LOW = tl.constexpr(rule.XI_GAIN - float(np.float32(rule.XI_GAIN)))  # what its float32 lacks
BFLOAT16 = tl.constexpr(1)  # codes of storage, as in cpu.py; 0 is float32
EIGHT_BIT = tl.constexpr(2)
SALT_V = tl.constexpr(0x9E3779B1)  # that of m is 1
SALT_X = tl.constexpr(0xC2B2AE3D)
ALL = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit
def bits_of(f: tl.tensor) -> tl.tensor:
    """Return the bits of float32."""
    return f.to(tl.uint32, bitcast=True)


@triton.jit
def float_of(b: tl.tensor) -> tl.tensor:
    """Return the float32 of 32 bits."""
    return b.to(tl.float32, bitcast=True)


# Arithmetic -----------------------------------------------------------------------------------------------------------


@triton.jit
def root_of(a: tl.tensor, rough: tl.tensor) -> tl.tensor:
    """Return the square root of a > 1e-30, rounded to the nearest, from roughly its inverse."""
    g = a * rough
    return tl.fma(tl.fma(-g, g, a), 0.5 * rough, g)


@triton.jit
def inverse_of(b: tl.tensor, rough: tl.tensor) -> tl.tensor:
    """Return 1 / b, b > 0, rounded to the nearest, from roughly that."""
    inverse = tl.fma(rough, tl.fma(-b, rough, 1.0), rough)
    return tl.fma(inverse, tl.fma(-b, inverse, 1.0), inverse)


@triton.jit
def quotient(a: tl.tensor, b: tl.tensor, rough: tl.tensor) -> tl.tensor:
    """Return a / b, b > 0, rounded to the nearest, from roughly 1 / b; a NaN where it overflows."""
    inverse = tl.fma(rough, tl.fma(-b, rough, 1.0), rough)
    q = a * inverse
    return tl.fma(tl.fma(-b, q, a), inverse, q)


@triton.jit
def exp_neg(y: tl.tensor) -> tl.tensor:
    """Return exp(-y), 0 <= y <= 40."""
    k = tl.fma(y, -1.44269504, 12582912.0)
    power = bits_of(k)
    k -= 12582912.0
    r = tl.fma(k, -0.693359375, -y)
    r = tl.fma(k, 2.12194440e-4, r)
    p = tl.fma(r, 0.00138198119, 0.0083686877)
    p = tl.fma(p, r, 0.0416682772)
    p = tl.fma(p, r, 0.166665211)
    p = tl.fma(p, r, 0.49999994)
    p = tl.fma(p * r, r, r) + 1.0
    return p * float_of((power << 23) + 0x3F800000)


@triton.jit
def decay_of(y: tl.tensor) -> tl.tensor:
    """Return exp(-y), y >= 0."""
    y = tl.minimum(y, 40.0, propagate_nan=ALL)
    q = tl.fma(y, 0.000964232546, -0.00794009864)
    q = tl.fma(q, y, 0.041488979)
    q = tl.fma(q, y, -0.166628912)
    q = tl.fma(q, y, 0.499997079)
    near = tl.fma(y * y, q, 1.0 - y)
    return tl.where(y < 0.8, near, exp_neg(y))


@triton.jit
def align_of(m: tl.tensor, g: tl.tensor) -> tl.tensor:
    """Return 0.5 - P = gd(m g) / pi of eq. 4."""
    z = m * g
    s = z * z
    p = tl.fma(s, 4.72875181e-05, -0.00030554313)
    p = tl.fma(p, s, 0.00115663267)
    p = tl.fma(p, s, -0.00383375818)
    p = tl.fma(p, s, 0.0132599557)
    p = tl.fma(p, s, -0.0530514717)
    p = tl.fma(p, s, 1.11408154e-08)
    near = tl.fma(z, 0.318309873, tl.fma(z, p, 0.0))

    size = tl.abs(z)
    t = exp_neg(tl.minimum(size, 20.0, propagate_nan=ALL))
    u = t * t
    q = tl.fma(u, 0.052338969, -0.0885188878)
    q = tl.fma(q, u, 0.127178282)
    q = tl.fma(q, u, -0.212202951)
    q = tl.fma(q, u, 0.636619747)
    far = bits_of(tl.fma(-q, t, 0.5)) | (bits_of(z) & 0x80000000)
    return tl.where(size < 1.0, near, float_of(far))


@triton.jit
def log_e_plus(s: tl.tensor) -> tl.tensor:
    """Return log(e + s) of eq. 5, -0.5 <= s <= 0.414 e."""
    t = s * 0.36787944
    p = tl.fma(t, 0.0513953269, -0.113550059)
    p = tl.fma(p, t, 0.145484999)
    p = tl.fma(p, t, -0.167750165)
    p = tl.fma(p, t, 0.20000039)
    p = tl.fma(p, t, -0.249974608)
    p = tl.fma(p, t, 0.333332747)
    p = tl.fma(p, t, -0.500000179)
    return tl.fma(p * t, t, t) + 1.0


@triton.jit
def scaled(
    g: tl.tensor,
    v_hat: tl.tensor,
    root: tl.tensor,
    rough: tl.tensor,
    e: tl.tensor,
    lr_gain: tl.tensor,
    lr_gain_low: tl.tensor,
) -> tl.tensor:
    """Return lr xi g / sqrt(v_hat), with one correction for what product, sum and quotient have lost."""
    a = e + 1.0  # XI_GAIN / xi
    a_low = e - (a - 1.0)
    above, below = g * lr_gain, a * root
    inverse = inverse_of(below, tl.rsqrt(a * a) * rough)
    d = above * inverse
    above_low = tl.fma(g, lr_gain_low, tl.fma(g, lr_gain, -above))
    root_low = tl.fma(-root, root, v_hat) * (0.5 * a * inverse)
    below_low = tl.fma(a_low, root, tl.fma(a, root, -below))
    below_low = tl.fma(a, root_low, below_low)
    return tl.fma(tl.fma(-d, below_low, tl.fma(-d, below, above) + above_low), inverse, d)


@triton.jit
def moved(
    theta: tl.tensor,
    grad: tl.tensor,
    m: tl.tensor,
    v: tl.tensor,
    x: tl.tensor,
    sign: tl.tensor,
    eps: tl.tensor,
    x_0: tl.tensor,
    beta1: tl.tensor,
    beta1_squared: tl.tensor,
    lr_gain: tl.tensor,
    lr_gain_low: tl.tensor,
    decay: tl.tensor,
    ratio_limit: tl.tensor,
    slack_low: tl.tensor,
    slack_high: tl.tensor,
    grad_limit: tl.tensor,
    rho_of_second_moment: tl.constexpr,
    skip: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Return parameter and state after a step."""
    g = grad * sign
    usable = tl.abs(g) <= grad_limit  # False for NaN
    if skip:
        g = tl.where(usable, g, 0.0)
    x_before = tl.where(x == 0.0, x_0, x)
    x_t = tl.fma(g, g, eps)
    align = align_of(m, g)
    v_hat = tl.maximum(v, x_t, propagate_nan=ALL)
    rough = tl.rsqrt(v_hat)
    root = root_of(v_hat, rough)

    slack = (root if rho_of_second_moment else root_of(x_t, tl.rsqrt(x_t))) + align
    slack = tl.minimum(tl.maximum(slack, slack_low, propagate_nan=ALL), slack_high, propagate_nan=ALL)
    rho = log_e_plus(slack)
    e = decay_of(tl.abs((x_before - 0.5) + align))
    d = scaled(g, v_hat, root, rough, e, lr_gain, lr_gain_low)
    half = tl.rsqrt(x_before)
    # A ratio that overflows has become a NaN, and this minimum takes the other number: the limit, as it should be.
    w = tl.minimum(quotient(x_t, x_before, half * half), ratio_limit) * tl.abs(align)

    m_next = tl.fma(rho * beta1, m, -d)
    v_next = tl.fma(-w, v_hat - x_t, v_hat)
    delta = tl.fma(rho * beta1_squared, m, -tl.fma(d, beta1, d))  # beta1 m_next - d
    theta_next = tl.fma(theta, decay, delta)
    if skip:
        m_next, v_next = tl.where(usable, m_next, m), tl.where(usable, v_next, v)
        x_t, theta_next = tl.where(usable, x_t, x), tl.where(usable, theta_next, theta)
    return theta_next, m_next, v_next, x_t


# Small numbers --------------------------------------------------------------------------------------------------------


@triton.jit
def noise_of(theta: tl.tensor, grad: tl.tensor) -> tl.tensor:
    """Return bits for rounding by chance: `frankenstein.kernels.state.noise`."""
    h = bits_of(grad) * 0x9E3779B1 + bits_of(theta) * 0x85EBCA77
    h = (h ^ (h >> 16)) * 0x21F0AAAD
    h = (h ^ (h >> 15)) * 0xD35A2D97
    return h ^ (h >> 15)


@triton.jit
def from_bfloat16(b: tl.tensor) -> tl.tensor:
    """Return the float32 of 16 bits."""
    return float_of(b.to(tl.uint32) << 16)


@triton.jit
def to_bfloat16(f: tl.tensor) -> tl.tensor:
    """Return 16 bits, rounded to the nearest, ties to even."""
    b = bits_of(f)
    rounded = (b + 0x7FFF + ((b >> 16) & 1)) >> 16
    return tl.where(f == f, rounded, 0x7FC0).to(tl.uint16)


@triton.jit
def to_bfloat16_noisy(f: tl.tensor, noise: tl.tensor) -> tl.tensor:
    """Return 16 bits, rounded by chance."""
    b = bits_of(f)
    size = b & 0x7FFFFFFF
    rounded = tl.where(size >= 0x7F800000, b, b + (noise >> 16)) >> 16
    return tl.where(size > 0x7F800000, 0x7FC0, rounded).to(tl.uint16)


@triton.jit
def decode(codes: tl.tensor, exponents: tl.tensor, has_sign: tl.constexpr) -> tl.tensor:
    """Return the float32 of 8-bit codes (blocks, 256)."""
    top: tl.constexpr = 126 if has_sign else 254
    codes = codes.to(tl.int32)
    base = exponents.to(tl.int32) * 8 + (7 - top)
    code = codes & 127 if has_sign else codes
    size = tl.where(code > top, 0x7FC00000, (code + base[:, None]) << 20)
    size = tl.where(code == 0, 0, size)
    return ((codes >> 7) << 31 | size if has_sign else size).to(tl.float32, bitcast=True)


@triton.jit
def encode(values: tl.tensor, noise: tl.tensor, mask: tl.tensor, has_sign: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Return codes (blocks, 256) and exponents (blocks)."""
    top: tl.constexpr = 126 if has_sign else 254
    b = bits_of(values)
    size = b & 0x7FFFFFFF
    if not has_sign:  # a negative v is as good as 0
        size = tl.where((b > size) & (size <= 0x7F800000), 0, size)
    steps = tl.minimum(((size + (noise >> 12)) >> 20).to(tl.int32), 0x7F7)
    steps = tl.where(size < 0x00800000, 0, steps)
    steps = tl.where(size >= 0x7F800000, -1, steps)  # not finite
    if mask is not None:
        steps = tl.where(mask, steps, 0)
    exponents = tl.maximum(tl.max(steps, axis=1), 0) >> 3
    code = tl.maximum(steps - (exponents * 8 + (7 - top))[:, None], 0 if has_sign else 1)
    code = tl.where(steps == 0, 0, tl.where(steps < 0, top + 1, code))
    if has_sign:
        code = code | ((b >> 31) << 7).to(tl.int32)
    return code.to(tl.uint8), exponents.to(tl.uint8)


# Memory ---------------------------------------------------------------------------------------------------------------


@triton.jit
def whole_places(first: tl.tensor) -> tl.tensor:
    """Return where whole blocks begin (4, 1)."""
    return first.to(tl.int64) * BLOCK + tl.arange(0, BLOCKS)[:, None] * BLOCK


@triton.jit
def places(row: tl.tensor, first: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return where the blocks begin (4, 1), which elements (4, 256) and which blocks (4) there are."""
    blocks = first + tl.arange(0, BLOCKS)
    length = tl.load(row + 7)
    in_row = tl.load(row + 8).to(tl.int32)
    rows = blocks // in_row
    inside = (blocks - rows * in_row).to(tl.int64) * BLOCK
    is_block = blocks < tl.load(row + 9)
    left = tl.where(is_block, length - inside, 0)
    return (rows.to(tl.int64) * length + inside)[:, None], tl.arange(0, BLOCK)[None, :] < left[:, None], is_block


@triton.jit
def pointers(
    row: tl.tensor, column: tl.constexpr, starts: tl.tensor, storage: tl.constexpr, is_whole: tl.constexpr
) -> tl.tensor:
    """Return the addresses (4, 256) of elements of the tensor in a column of the table."""
    if storage == EIGHT_BIT:
        base = tl.load(row + column).to(tl.pointer_type(tl.uint8))
    elif storage == BFLOAT16:
        base = tl.load(row + column).to(tl.pointer_type(tl.uint16))
    else:
        base = tl.load(row + column).to(tl.pointer_type(tl.float32))
    if is_whole:
        base = tl.multiple_of(base, 16)  # so that a thread reads 16 bytes at once
    return (base + starts) + tl.arange(0, BLOCK)[None, :]


@triton.jit
def read(at: tl.tensor, mask: tl.tensor, storage: tl.constexpr) -> tl.tensor:
    """Return float32, or codes; 0 where there is no element."""
    if mask is None:
        values = tl.load(at)
    else:
        values = tl.load(at, mask, other=0)
    return from_bfloat16(values) if storage == BFLOAT16 else values


@triton.jit
def step(
    table: tl.tensor,
    pieces: tl.tensor,
    lr: tl.tensor,
    sign: tl.tensor,
    eps: tl.tensor,
    x_0: tl.tensor,
    beta1: tl.tensor,
    beta1_squared: tl.tensor,
    lr_gain: tl.tensor,
    lr_gain_low: tl.tensor,
    decay: tl.tensor,
    ratio_limit: tl.tensor,
    slack_low: tl.tensor,
    slack_high: tl.tensor,
    grad_limit: tl.tensor,
    gap_gain: tl.tensor,
    beta1_low: tl.tensor,
    beta1_high: tl.tensor,
    weight_decay: tl.tensor,
    rho_of_second_moment: tl.constexpr,
    skip: tl.constexpr,
    param_storage: tl.constexpr,
    state_storage: tl.constexpr,
    is_compensated: tl.constexpr,
    is_whole: tl.constexpr,
) -> None:
    """Step 1,024 elements of one tensor.

    Args:
        table: One row of int64 for each tensor; `frankenstein.kernels.cuda` says of what.
        pieces: (n_programs, 2) int32: the tensor, and the first of four blocks of 256.
        lr: A learning rate on the device, from which what depends on it follows; 0 is a pause. None: it is known.
        sign: Of the gradient; this and what follows, to `grad_limit`, as in cpu.c.
        eps: See there.
        x_0: Where `lr` is None.
        beta1: Where `lr` is None.
        beta1_squared: Where `lr` is None.
        lr_gain: Where `lr` is None.
        lr_gain_low: Where `lr` is None.
        decay: Where `lr` is None.
        ratio_limit: See there.
        slack_low: See there.
        slack_high: See there.
        grad_limit: See there.
        gap_gain: (1 - momentum) / sqrt(base_lr), eq. 3; this and what follows where `lr` is given.
        beta1_low: Of its range.
        beta1_high: Of its range.
        weight_decay: As the optimizer's.
        rho_of_second_moment: As in cpu.c.
        skip: As in cpu.c.
        param_storage: Of parameter, gradient and compensation.
        state_storage: Of m, v and x.
        is_compensated: Whether what the parameter cannot hold is kept.
        is_whole: All blocks are whole, lie one after the other and begin at multiples of 16 bytes.
    """
    piece = pieces + 2 * tl.program_id(0).to(tl.int64)
    row = table + tl.load(piece).to(tl.int64) * COLUMNS
    first = tl.load(piece + 1)
    if lr is not None:
        x_0 = tl.load(lr).to(tl.float32)
        if x_0 == 0.0:
            return
        beta1 = 1.0 - root_of(x_0, tl.rsqrt(x_0)) * gap_gain  # eq. 3
        beta1 = tl.minimum(tl.maximum(beta1, beta1_low), beta1_high)
        beta1_squared = beta1 * beta1
        lr_gain = x_0 * XI_GAIN
        lr_gain_low = tl.fma(x_0, XI_GAIN, -lr_gain) + x_0 * XI_GAIN_LOW
        decay = tl.fma(-x_0, weight_decay, 1.0)

    if is_whole:
        starts = whole_places(first)
        mask, block_mask = None, None
    else:
        starts, mask, block_mask = places(row, first)
    theta_at = pointers(row, 0, starts, param_storage, is_whole)
    grad_at = pointers(row, 1, starts, param_storage, is_whole)
    m_at = pointers(row, 2, starts, state_storage, is_whole)
    v_at = pointers(row, 3, starts, state_storage, is_whole)
    x_at = pointers(row, 4, starts, state_storage, is_whole)
    theta = read(theta_at, mask, param_storage)
    grad = read(grad_at, mask, param_storage)
    m, v, x = read(m_at, mask, state_storage), read(v_at, mask, state_storage), read(x_at, mask, state_storage)
    if is_compensated:
        compensation_at = pointers(row, 6, starts, param_storage, is_whole)
        theta += read(compensation_at, mask, param_storage)
    if state_storage == EIGHT_BIT:
        exponents = tl.load(row + 5).to(tl.pointer_type(tl.uint8)) + (first + tl.arange(0, BLOCKS)).to(tl.int64) * 3
        m = decode(m, read(exponents, block_mask, EIGHT_BIT), True)
        v = decode(v, read(exponents + 1, block_mask, EIGHT_BIT), False)
        x = decode(x, read(exponents + 2, block_mask, EIGHT_BIT), False)
    noise = noise_of(theta, grad)  # of what is float32 it is not used, and not computed

    theta, m, v, x = moved(
        theta,
        grad,
        m,
        v,
        x,
        sign,
        eps,
        x_0,
        beta1,
        beta1_squared,
        lr_gain,
        lr_gain_low,
        decay,
        ratio_limit,
        slack_low,
        slack_high,
        grad_limit,
        rho_of_second_moment,
        skip,
    )

    if state_storage == EIGHT_BIT:
        m, m_exponents = encode(m, noise, mask, True)
        v, v_exponents = encode(v, noise * SALT_V, mask, False)
        x, x_exponents = encode(x, noise * SALT_X, mask, False)
        tl.store(exponents, m_exponents, block_mask)
        tl.store(exponents + 1, v_exponents, block_mask)
        tl.store(exponents + 2, x_exponents, block_mask)
    elif state_storage == BFLOAT16:
        m = to_bfloat16_noisy(m, noise)
        v = to_bfloat16_noisy(v, noise * SALT_V)
        x = to_bfloat16_noisy(x, noise * SALT_X)
    tl.store(m_at, m, mask)
    tl.store(v_at, v, mask)
    tl.store(x_at, x, mask)
    if param_storage == BFLOAT16:
        rounded = to_bfloat16(theta)
        tl.store(theta_at, rounded, mask)
        if is_compensated:
            tl.store(compensation_at, to_bfloat16(theta - from_bfloat16(rounded)), mask)
    else:
        tl.store(theta_at, theta, mask)
