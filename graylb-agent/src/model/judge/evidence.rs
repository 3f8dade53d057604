//! How strongly counts speak against "the canary is no worse": e-values that may be looked at all the time.
//!
//! In: counts of two pools over one window. Out: the natural logarithm of an e-value. Under the hypothesis that
//! it speaks against, the chance that it *ever* reaches ln(1/α), however often one looks, is at most α (Ville's
//! inequality). docs/judging.md has the mathematics and the sources.

use super::counts::{BUCKETS, Histogram};

/// Something that happens to some of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    hits: u64,
    of: u64,
}

impl Part {
    /// `hits` of `of`; what cannot be more is not.
    #[must_use]
    pub fn new(hits: u64, of: u64) -> Self {
        Self { hits: hits.min(of), of }
    }

    /// How often it happened.
    #[must_use]
    pub const fn hits(self) -> u64 {
        self.hits
    }

    /// Of how many.
    #[must_use]
    pub const fn of(self) -> u64 {
        self.of
    }

    /// The rate that was seen; 0 of nothing.
    #[must_use]
    pub fn rate(self) -> f64 {
        if self.of == 0 { 0.0 } else { self.hits as f64 / self.of as f64 }
    }

    /// The logarithm of these counts' likelihood where the rate is `rate`.
    fn ln_likelihood(self, rate: f64) -> f64 {
        // 0 · ln 0 is 0.
        let term = |count: u64, rate: f64| if count == 0 { 0.0 } else { count as f64 * rate.ln() };
        term(self.hits, rate) + term(self.of - self.hits, 1.0 - rate)
    }

    /// The same, averaged over all rates with the weights of a Beta distribution.
    fn ln_mixture(self, prior: Prior) -> f64 {
        let Prior(a, b) = prior;
        ln_beta(self.hits as f64 + a, (self.of - self.hits) as f64 + b) - ln_beta(a, b)
    }
}

/// A Beta distribution of rates that are thought of; any is valid, a fitting one needs fewer samples.
#[derive(Clone, Copy)]
struct Prior(f64, f64);

/// Failures, which are rare: 2 % in the mean, and much weight near none.
const RARE: Prior = Prior(0.5, 20.0);
/// Krichevsky and Trofimov's: never far from the best for any rate.
const ANY: Prior = Prior(0.5, 0.5);

/// Against "the canary's rate is at most the stable pool's plus `margin`".
#[must_use]
pub fn ln_more(canary: Part, stable: Part, margin: f64) -> f64 {
    let found = ln_sum(canary.ln_mixture(RARE), canary.ln_mixture(ANY)) - 2_f64.ln()
        + stable.ln_mixture(RARE);
    found - ln_best_within(canary, stable, margin)
}

/// The best likelihood of both where the canary's rate is at most the stable pool's plus `margin`.
fn ln_best_within(canary: Part, stable: Part, margin: f64) -> f64 {
    /// Halvings of the interval by a golden section: to 1e-12 of it.
    const STEPS: u32 = 58;
    const GOLDEN: f64 = 0.618_033_988_749_895;
    if canary.rate() <= stable.rate() + margin {
        return canary.ln_likelihood(canary.rate()) + stable.ln_likelihood(stable.rate());
    }
    // The best is on the edge, where the likelihood is a concave function of the stable pool's rate.
    let edge =
        |rate: f64| canary.ln_likelihood((rate + margin).min(1.0)) + stable.ln_likelihood(rate);
    let (mut low, mut high) = (0.0, 1.0 - margin);
    for _ in 0..STEPS {
        let width = (high - low) * GOLDEN;
        if edge(high - width) < edge(low + width) { low = high - width } else { high = low + width }
    }
    edge(f64::midpoint(low, high)).max(edge(0.0))
}

/// Against "the rate is at most `most`".
fn ln_above(part: Part, most: f64) -> f64 {
    part.ln_mixture(ANY) - part.ln_likelihood(part.rate().min(most))
}

/// Against "the rate is at least `least`".
fn ln_below(part: Part, least: f64) -> f64 {
    part.ln_mixture(ANY) - part.ln_likelihood(part.rate().max(least))
}

/// Against "the canary's quantile lies at most `allowed` buckets above the stable pool's, or not above bucket
/// `floor`". The quantile is the first bucket up to which there are at least `quantile` of all.
#[must_use]
pub fn ln_slower(
    canary: &Histogram,
    stable: &Histogram,
    quantile: f64,
    allowed: usize,
    floor: usize,
) -> f64 {
    // Whichever bucket holds the stable pool's quantile in truth: each is refuted by the stable pool's counts or
    // the canary's. The weakest of these is what is certain.
    let rest = 1.0 - quantile;
    let each = (0..BUCKETS).map(|bucket| {
        let above = ln_above(slower_than(stable, bucket), rest);
        // Below the first bucket there is nobody.
        let below = bucket.checked_sub(1).map_or(0.0, |b| ln_below(slower_than(stable, b), rest));
        let bound = (bucket + allowed).max(floor);
        ln_sum(above, below) - 2_f64.ln() + ln_above(slower_than(canary, bound), rest)
    });
    each.fold(f64::INFINITY, f64::min)
}

/// Those in buckets above `bucket`.
fn slower_than(histogram: &Histogram, bucket: usize) -> Part {
    let slower = histogram.iter().skip(bucket + 1).sum();
    Part::new(slower, histogram.iter().sum())
}

/// The bucket that a quantile lies in; `None` of nothing.
#[must_use]
pub fn bucket_of(histogram: &Histogram, quantile: f64) -> Option<usize> {
    let total: u64 = histogram.iter().sum();
    let mut below = 0;
    histogram.iter().position(|&count| {
        below += count;
        count > 0 && below as f64 >= quantile * total as f64
    })
}

/// ln(e^a + e^b).
fn ln_sum(a: f64, b: f64) -> f64 {
    let (small, large) = if a < b { (a, b) } else { (b, a) };
    large + (small - large).exp().ln_1p()
}

fn ln_beta(a: f64, b: f64) -> f64 {
    ln_gamma(a) + ln_gamma(b) - ln_gamma(a + b)
}

/// ln Γ(x) for x > 0, by Stirling's series (Abramowitz and Stegun, 6.1.41) beyond 10 and Γ(x + 1) = x Γ(x).
fn ln_gamma(x: f64) -> f64 {
    const HALF_LN_TAU: f64 = 0.918_938_533_204_672_8;
    let (mut x, mut product) = (x, 1.0);
    while x < 10.0 {
        product *= x;
        x += 1.0;
    }
    let square = 1.0 / (x * x);
    let series =
        (1.0 / 12.0 - square * (1.0 / 360.0 - square * (1.0 / 1260.0 - square / 1680.0))) / x;
    (x - 0.5) * x.ln() - x + HALF_LN_TAU + series - f64::ln(product)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-9 * (1.0 + b.abs())
    }

    #[test]
    fn gamma_is_gamma() {
        // Γ(n) = (n - 1)!, Γ(1/2) = √π.
        let mut factorial = 1.0;
        for n in 1..100 {
            assert!(close(ln_gamma(f64::from(n)), f64::ln(factorial)), "{n}");
            factorial *= f64::from(n);
        }
        assert!(close(ln_gamma(0.5), std::f64::consts::PI.sqrt().ln()));
    }

    proptest! {
        /// The mixture is a martingale under each rate in expectation: averaged over all outcomes of n draws, an
        /// e-value against that very rate is 1.
        #[test]
        fn the_mean_of_an_e_value_is_one_at_most(n in 1..40_u64, most in 0.001..0.999_f64) {
            let ln_choose = |k: u64| {
                ln_gamma(n as f64 + 1.0) - ln_gamma(k as f64 + 1.0) - ln_gamma((n - k) as f64 + 1.0)
            };
            let mean = |e: &dyn Fn(Part) -> f64| -> f64 {
                let outcomes = (0..=n).map(|k| Part::new(k, n));
                outcomes.map(|p| (ln_choose(p.hits) + p.ln_likelihood(most) + e(p)).exp()).sum()
            };
            prop_assert!(mean(&|part| ln_above(part, most)) <= 1.0 + 1e-9);
            prop_assert!(mean(&|part| ln_below(part, most)) <= 1.0 + 1e-9);
            let stable = Part::new(0, 0);
            prop_assert!(mean(&|part| ln_more(part, stable, most)) <= 1.0 + 1e-9);
        }

        /// On a grid of rates none within the margin is likelier than the best that is found.
        #[test]
        fn the_best_is_the_best(
            canary in (0..500_u64, 1..500_u64),
            stable in (0..500_u64, 1..500_u64),
            margin in 0.0..0.3_f64,
        ) {
            let (canary, stable) = (Part::new(canary.0, canary.1), Part::new(stable.0, stable.1));
            let best = ln_best_within(canary, stable, margin);
            for s in 0..=100 {
                for c in 0..=100 {
                    let (s, c) = (f64::from(s) / 100.0, f64::from(c) / 100.0);
                    if c <= s + margin {
                        let likelihood = canary.ln_likelihood(c) + stable.ln_likelihood(s);
                        prop_assert!(likelihood <= best + 1e-6, "{likelihood} > {best} at {c}, {s}");
                    }
                }
            }
        }
    }
}
