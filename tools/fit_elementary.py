#!/usr/bin/env python3
"""Fits the polynomials of exp and erf in kernels/cpu/vec16-inl.h and prints their coefficients.

Remez exchange in 60 digits, coefficients rounded to float32 one after another from the lowest power
(what rounding one of them loses is fitted again by those above it). Needs mpmath.
"""

import struct

import mpmath as mp

mp.mp.dps = 60


def float32(x):
    return mp.mpf(struct.unpack("f", struct.pack("f", float(x)))[0])


def remez(target, weight, powers, low, high, rounds=12):
    """Coefficients of sum c_i x^powers[i] with the least largest |weight(x) (target(x) - sum)|."""
    n = len(powers)
    nodes = [(low + high) / 2 - (high - low) / 2 * mp.cos(mp.pi * i / n) for i in range(n + 1)]
    grid = [low + (high - low) * mp.mpf(i) / 400 for i in range(401)]
    for _ in range(rounds):
        system = mp.matrix(n + 1, n + 1)
        right = mp.matrix(n + 1, 1)
        for i, x in enumerate(nodes):
            for j, power in enumerate(powers):
                system[i, j] = x**power
            system[i, n] = (-1) ** i / weight(x)
            right[i] = target(x)
        solution = mp.lu_solve(system, right)
        coefficients = list(solution[:n])

        def error(x):
            return weight(x) * (target(x) - sum(c * x**p for c, p in zip(coefficients, powers)))

        errors = [error(x) for x in grid]
        # One extremum for each run of equal sign.
        extrema, start = [], 0
        for i in range(1, len(grid) + 1):
            if i == len(grid) or mp.sign(errors[i]) != mp.sign(errors[start]):
                best = max(range(start, i), key=lambda k: abs(errors[k]))
                extrema.append(grid[best])
                start = i
        if len(extrema) < n + 1:
            break
        while len(extrema) > n + 1:
            extrema.pop(0 if abs(error(extrema[0])) < abs(error(extrema[-1])) else -1)
        nodes = extrema
    return coefficients, max(abs(e) for e in errors)


def fit(name, target, weight, powers, low, high, fixed=()):
    """Rounds the coefficients in turn; `fixed` are (power, value) that are given."""
    done = list(fixed)
    powers = list(powers)
    low, high = mp.mpf(low), mp.mpf(high)
    error = None
    while powers:
        rest = lambda x: target(x) - sum(c * x**p for p, c in done)  # noqa: E731
        coefficients, error = remez(rest, weight, powers, low, high)
        done.append((powers[0], float32(coefficients[0])))
        powers.pop(0)
    print(f"{name}: largest weighted error {mp.nstr(error, 3)}")
    for power, c in done:
        print(f"  x^{power}: {float(c):.9g}f")


def main():
    half = mp.log(2) / 2
    fit(
        "exp(x), |x| <= ln(2) / 2",
        mp.exp,
        lambda x: mp.exp(-x),
        range(2, 7),
        -half,
        half,
        fixed=((0, mp.mpf(1)), (1, mp.mpf(1))),
    )
    # erf(x) = x + x p(x^2) below 1.
    near = lambda s: mp.erf(mp.sqrt(s)) / mp.sqrt(s) - 1 if s else 2 / mp.sqrt(mp.pi) - 1  # noqa: E731
    fit(
        "erf(x) / x - 1 in s = x^2, x < 1",
        near,
        lambda s: mp.sqrt(s) / mp.erf(mp.sqrt(s)) if s else mp.sqrt(mp.pi) / 2,
        range(0, 7),
        "0",
        "1",
    )
    # erf(x) = 1 - exp(q(x - 1)) from 1 to 4; an error of q counts by the size of exp(q).
    fit(
        "log(erfc(1 + u)), 0 <= u <= 3",
        lambda u: mp.log(mp.erfc(1 + u)),
        lambda u: mp.erfc(1 + u) + mp.mpf("1e-3") * mp.exp(-u),
        range(0, 8),
        "0",
        "3",
    )


if __name__ == "__main__":
    main()
