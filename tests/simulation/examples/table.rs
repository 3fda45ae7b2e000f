//! dev table
use tollgate::authorization::Period;
use tollgate_simulation::*;
fn main() {
    let shape = std::env::args().nth(1).unwrap_or("a".into());
    let (limit, rate, load, applications) = match shape.as_str() {
        "a" => (1000, 200.0, Load::Even, 1),
        "b" => (1000, 200.0, Load::Uneven, 1),
        "c" => (1000, 200.0, Load::Moving, 1),
        "d" => (1000, 15.0, Load::Even, 1),
        "e" => (100, 100.0, Load::Even, 20),
        "f" => (1000, 15.0, Load::Uneven, 1),
        "g" => (100000, 5000.0, Load::Even, 1),
        _ => panic!(),
    };
    let only: Vec<u16> = std::env::args()
        .nth(2)
        .map(|s| s.split(',').map(|x| x.parse().unwrap()).collect())
        .unwrap_or(vec![1, 4, 16, 64]);
    for mode in [Mode::Eager, Mode::Strict] {
        for lag in [50, 500, 2000] {
            for gateways in only.iter().copied() {
                let f = run(Setup {
                    gateways,
                    limit,
                    period: Period::Minute,
                    rate,
                    load,
                    applications,
                    lag,
                    mode,
                    windows: std::env::var("W").map(|w| w.parse().unwrap()).unwrap_or(5),
                    seed: 1,
                });
                println!(
                    "{mode:?} lag {lag} N {gateways}: overrun {:.1}% worst {:.1}% unused {:.1}% early {:.1}% calls {:.2} most {}",
                    f.overrun() * 100.,
                    f.worst_overrun() * 100.,
                    f.unused() * 100.,
                    f.early() * 100.,
                    f.calls,
                    f.most_calls
                );
            }
        }
    }
}
