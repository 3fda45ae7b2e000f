//! What is claimed of shared limits, for a few windows each; `cargo xtask gateways --simulate`
//! shows more of them. The same seeds in every run, and no real time, so the figures are the
//! same in every run, too.
//!
//! Another order of the same steps is another seed, as it were. So bounds are not what these seeds
//! give but a little more than the worst of 50 to 200 others.

use tollgate_simulation::{Figures, Load, Mode, Period, Setup, run};

const SETUP: Setup = Setup {
    gateways: 4,
    told: None,
    limit: 1_000,
    period: Period::Minute,
    rate: 200.0,
    load: Load::Even,
    applications: 1,
    lag: 50,
    mode: Mode::Strict,
    windows: 2,
    seed: 1,
};

/// Twelve applications at three times their limits, on four gateways.
const MANY: Setup = Setup {
    limit: 100,
    rate: 60.0,
    applications: 12,
    ..SETUP
};

fn all_is_used(figures: &Figures) {
    assert_eq!(figures.unused(), 0.0, "{figures:?}");
}

#[test]
fn the_same_seed_gives_the_same_figures_and_another_seed_others() {
    // Each hash map of a process has an order of its own, so two runs in one process differ
    // where such an order reaches a decision.
    for mode in [Mode::Strict, Mode::Eager, Mode::FixedFlush] {
        let setup = Setup { mode, ..MANY };
        let figures = run(setup);
        assert_eq!(run(setup), figures, "{mode:?}");
        assert_ne!(run(Setup { seed: 2, ..setup }), figures, "{mode:?}");
    }
}

#[test]
fn one_gateway_admits_the_limit_and_no_more_whatever_the_lag() {
    for lag in [50, 2_000] {
        let figures = run(Setup {
            gateways: 1,
            lag,
            ..SETUP
        });
        assert_eq!(figures.admitted, [1_000, 1_000]);
        assert_eq!(figures.early(), 0.0);
    }
}

#[test]
fn strict_gateways_overrun_a_limit_by_about_one_percent_at_most_and_use_all_of_it() {
    for (gateways, lag) in [(4, 50), (16, 50), (4, 500), (16, 500)] {
        for seed in 1..=3 {
            let figures = run(Setup {
                gateways,
                lag,
                seed,
                ..SETUP
            });
            let what = format!("{gateways} {lag} {seed}: {figures:?}");
            // Four never went over by more than 0.3%, sixteen once by 1.1% and else by 0.9%.
            let most = if gateways == 4 { 0.005 } else { 0.012 };
            assert!(figures.worst_overrun() < most, "{what}");
            assert!(figures.overrun() < 0.007, "{what}");
            assert!(figures.calls < 1.0, "{what}");
            all_is_used(&figures);
        }
    }
}

#[test]
fn a_load_on_few_of_the_gateways_is_kept_within_the_limit_and_may_use_all_of_it() {
    let figures = run(Setup {
        gateways: 16,
        load: Load::Uneven,
        windows: 3,
        ..SETUP
    });
    assert!(figures.worst_overrun() < 0.015, "{figures:?}");
    all_is_used(&figures);
}

#[test]
fn a_load_that_moves_from_gateway_to_gateway_is_kept_within_half_a_percent_however_often_it_does() {
    for (every, rate) in [
        (2_000, 200.0),
        (5_000, 200.0),
        (20_000, 200.0),
        (20_000, 60.0),
    ] {
        for (gateways, lag) in [(4, 50), (16, 50), (4, 500), (16, 500)] {
            let figures = run(Setup {
                gateways,
                lag,
                rate,
                load: Load::Moving { every },
                windows: 4,
                ..SETUP
            });
            let what = format!("{every} {rate} {gateways} {lag}: {figures:?}");
            assert!(figures.worst_overrun() < 0.005, "{what}");
            assert!(figures.calls < 0.6, "{what}");
            // Who was idle for as long as the others are many is granted little at first.
            let most_unused = if gateways == 4 { 0.04 } else { 0.4 };
            assert!(figures.unused() < most_unused, "{what}");
        }
    }
}

#[test]
fn a_gateway_that_wakes_up_now_and_then_far_from_the_limit_is_refused_nothing() {
    let figures = run(Setup {
        rate: 2.0,
        load: Load::Moving { every: 25_000 },
        windows: 6,
        ..SETUP
    });
    assert_eq!(figures.early(), 0.0, "{figures:?}");
}

#[test]
fn strict_is_closer_than_eager_and_eager_than_a_fixed_flush() {
    for lag in [50, 2_000] {
        let [strict, eager, fixed] = [Mode::Strict, Mode::Eager, Mode::FixedFlush]
            .map(|mode| run(Setup { lag, mode, ..SETUP }).overrun());
        assert!(strict < eager / 10.0, "{strict} {eager}");
        assert!(eager < fixed / 4.0, "{eager} {fixed}");
    }
}

#[test]
fn below_its_limit_an_application_is_hardly_ever_refused() {
    for (mode, most) in [(Mode::Strict, 0.007), (Mode::Eager, 0.0)] {
        let figures = run(Setup {
            gateways: 16,
            rate: 14.0,
            mode,
            ..SETUP
        });
        assert!(figures.early() <= most, "{mode:?}: {figures:?}");
        assert!(figures.unused() <= most, "{mode:?}: {figures:?}");
        assert_eq!(figures.overrun(), 0.0);
        assert!(figures.calls < 0.4, "{mode:?}: {figures:?}");
    }
}

#[test]
fn many_applications_at_their_limits_cost_no_more_calls() {
    for seed in 1..=4 {
        let figures = run(Setup { seed, ..MANY });
        let what = format!("{seed}: {figures:?}");
        assert!(figures.calls < 2.6, "{what}");
        assert!(figures.unused() < 0.075, "{what}");
        // In 120 seeds nothing was overrun, and 4.1% to 5.7% was unused.
        assert!(figures.worst_overrun() < 0.015, "{what}");
        assert!(figures.overrun() < 0.001, "{what}");
    }
}

#[test]
fn a_number_of_gateways_that_is_half_of_the_true_one_costs_little_and_a_quarter_more() {
    let [half, quarter] = [8, 4].map(|told| {
        let figures = run(Setup {
            gateways: 16,
            told: Some(told),
            lag: 500,
            windows: 3,
            ..SETUP
        });
        figures.overrun()
    });
    assert!(half < 0.03, "{half}");
    assert!((half..0.2).contains(&quarter), "{quarter}");
}
