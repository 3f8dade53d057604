//! Weights → slots: smooth weighted round robin.

use crate::model::spec::gcd;

/// The cycle of choices for backends of these weights: index `i` appears `weights[i] / g` times, `g`
/// being their greatest common divisor, and as evenly spread as can be; equal weights take strict turns.
///
/// The order is nginx's smooth weighted round robin (`ngx_http_upstream_get_peer`, since 1.3.1): at each
/// step every backend gains its weight, the first with the most is chosen and pays the sum of all.
#[must_use]
pub fn round_robin(weights: &[u16]) -> Vec<u32> {
    let divisor = weights.iter().fold(0, |divisor, &weight| gcd(divisor, u32::from(weight)));
    if divisor == 0 {
        return Vec::new();
    }
    let weights: Vec<i64> =
        weights.iter().map(|&weight| i64::from(weight) / i64::from(divisor)).collect();
    let total: i64 = weights.iter().sum();
    let mut credit = vec![0_i64; weights.len()];
    (0..total)
        .map(|_| {
            let mut chosen = 0;
            for place in 0..weights.len() {
                credit[place] += weights[place];
                if credit[place] > credit[chosen] {
                    chosen = place;
                }
            }
            credit[chosen] -= total;
            chosen as u32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_weights_take_strict_turns() {
        assert_eq!(round_robin(&[1, 1]), [0, 1]);
        assert_eq!(round_robin(&[7, 7, 7]), [0, 1, 2]);
    }

    #[test]
    fn a_heavy_backend_does_not_come_in_a_burst() {
        assert_eq!(round_robin(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn no_weight_no_slots() {
        assert_eq!(round_robin(&[]), [0_u32; 0]);
        assert_eq!(round_robin(&[0, 0]), [0_u32; 0]);
    }

    proptest! {
        #[test]
        fn shares_are_exact(weights in proptest::collection::vec(0_u16..50, 1..12)) {
            let slots = round_robin(&weights);
            let divisor = weights.iter().fold(0, |d, &w| gcd(d, u32::from(w)));
            for (place, &weight) in weights.iter().enumerate() {
                let count = slots.iter().filter(|&&slot| slot == place as u32).count() as u32;
                prop_assert_eq!(count * divisor, u32::from(weight));
            }
        }

        /// In any stretch of the endless cycle a backend's turns stay within a bound of its share.
        #[test]
        fn turns_are_spread(weights in proptest::collection::vec(1_u16..20, 2..6)) {
            let slots = round_robin(&weights);
            let total: u32 = weights.iter().map(|&w| u32::from(w)).sum();
            for (place, &weight) in weights.iter().enumerate() {
                let mut seen = 0.0;
                for (step, &slot) in slots.iter().enumerate() {
                    seen += f64::from(slot == place as u32);
                    let share = (step + 1) as f64 * f64::from(weight) / f64::from(total);
                    prop_assert!((seen - share).abs() < weights.len() as f64, "{seen} of {share}");
                }
            }
        }
    }
}
