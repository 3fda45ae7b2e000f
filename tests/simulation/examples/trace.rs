//! dev
use tollgate_simulation::*;
use tollgate::authorization::Period;
fn main() {
    let a: Vec<u64> = std::env::args().skip(1).map(|x| x.parse().unwrap()).collect();
    let f = run(Setup { gateways: a[0] as u16, limit: 1000, period: Period::Minute, rate: 200.0, load: Load::Even, applications: 1, lag: a[1], mode: if a[2]==0 {Mode::Eager} else {Mode::Strict}, windows: a[3] as u32, seed: 1 });
    println!("{:?}", f.admitted);
}
