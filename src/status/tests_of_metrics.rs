//! The counters of runs, and their text.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::{
    counters::{Accumulator, Counters, Evidence, MOST_RUNS},
    metrics::{Picture, text},
    picture::{Loss, NodeState, RoundStatus, RunStatus},
    records::Observation,
    tests::{START, at, changing, forming, judged, running},
    verdict::unreachable,
};
use crate::protocol::records::{ChangeKind, ClosedRecord, Outcome};

/// A round. It took as many seconds as its number says, formed as many after the start, and lost a member if the number is
/// even.
fn round(number: u64, cause: Option<ChangeKind>) -> RoundStatus {
    let took = f64::from(u32::try_from(number).unwrap());
    let lost = Loss {
        name: "n".into(),
        evidence: number.is_multiple_of(4).then(|| "reset".into()),
        told_seconds: Some(took),
    };
    RoundStatus {
        round: number,
        formed_at: Some(START + number),
        took_seconds: took,
        stood_still_seconds: cause.map(|_| took),
        resumed_after_seconds: None,
        size: 2,
        newcomers: 0,
        cause,
        why: String::new(),
        coordinator: "n1".into(),
        names: Vec::new(),
        lost: if number.is_multiple_of(2) { vec![lost] } else { Vec::new() },
    }
}

/// A run with the rounds that its history still has.
fn with_rounds(id: &str, first: u64, last: u64) -> RunStatus {
    let mut run = judged(&running(2), 0);
    run.run.id = id.to_owned();
    run.run.round = Some(last);
    run.rounds =
        (first..=last).map(|number| round(number, (number > 1).then_some(ChangeKind::Lost))).collect();
    run
}

fn closed(id: &str) -> RunStatus {
    let mut records = running(2);
    records.closed = Some(ClosedRecord {
        life: "l".into(),
        by: "n1".into(),
        why: "done".into(),
        outcome: Outcome::Succeeded,
        submission: None,
    });
    let mut run = judged(&records, 0);
    run.run.id = id.to_owned();
    run
}

/// A picture in which every run was read.
fn picture(runs: &[RunStatus]) -> Picture<'_> {
    Picture { runs, unread: 0 }
}

/// An accumulator that began this many seconds after the start.
fn began(seconds: u64) -> Accumulator {
    Accumulator::new(at(seconds))
}

fn assert_near(found: f64, expected: f64, what: &str) {
    assert!((found - expected).abs() < 0.001, "{what}: {found}, expected {expected}");
}

fn rounds(counters: &Counters) -> u64 {
    counters.rounds.values().sum()
}

/// Every value of a counter.
fn values(counters: &Counters) -> Vec<f64> {
    let count = |count: u64| f64::from(u32::try_from(count).unwrap());
    let mut values = vec![counters.standstill_seconds, count(counters.false_alarms)];
    let causes = [None, Some(ChangeKind::Lost)];
    values.extend(causes.map(|cause| count(counters.rounds.get(&cause).copied().unwrap_or(0))));
    for histogram in counters.told.values().chain([&counters.formation]) {
        values.extend([histogram.sum, count(histogram.count)]);
        values.extend(histogram.buckets.iter().map(|(_, number)| count(*number)));
    }
    values
}

#[test]
fn counters_do_not_fall_while_history_is_pruned() {
    let mut accumulator = began(0);
    let mut last: u64 = 0;
    let mut before = Vec::new();
    for step in 0..60 {
        // From no round to 12 between two pictures, of a history that keeps 20.
        last += step * 7 % 13;
        let run = with_rounds("job", (last + 1).saturating_sub(20).max(1), last);
        accumulator.observe(std::slice::from_ref(&run));
        let counters = accumulator.of(&run).unwrap();
        let now = values(counters);
        assert!(before.iter().zip(&now).all(|(before, now)| before <= now), "{before:?} {now:?}");
        assert_eq!((rounds(counters), counters.formation.count), (last, last));
        before = now;
    }
    assert!(last > 300, "{last}");
    let run = with_rounds("job", last, last);
    let counters = accumulator.of(&run).unwrap();
    assert_eq!(counters.rounds[&None], 1);
    assert_eq!(counters.told[&Evidence::Connection].count, last / 4);
    assert_eq!(counters.told[&Evidence::Lease].count, last / 2 - last / 4);
}

#[test]
fn what_was_before_the_accumulator_began_is_not_counted() {
    let mut accumulator = Accumulator::new(at(50) + 0.7);
    let run = with_rounds("job", 1, 49);
    accumulator.observe(std::slice::from_ref(&run));
    let zeros = values(accumulator.of(&run).unwrap());
    assert!(zeros.iter().all(|value| *value == 0.0), "{zeros:?}");
    let run = with_rounds("job", 1, 52);
    accumulator.observe(std::slice::from_ref(&run));
    let counters = accumulator.of(&run).unwrap();
    assert_eq!(rounds(counters), 3);
    // Of the standstills before rounds 50, 51 and 52, this much was after it began.
    let expected = 0.3 + 1.3 + 2.3;
    assert_near(counters.standstill_seconds, expected, "the standstills");
    // A run that one picture does not have, because it was not read in time, counts as before.
    accumulator.observe(&[]);
    assert!(accumulator.of(&run).is_none());
    accumulator.observe(std::slice::from_ref(&run));
    let again = accumulator.of(&run).unwrap();
    assert_eq!(rounds(again), 3);
    assert_near(again.standstill_seconds, expected, "again");
    // A round of an earlier release does not say when it formed.
    let mut unknown = with_rounds("other", 1, 60);
    unknown.rounds.iter_mut().for_each(|round| round.formed_at = None);
    accumulator.observe(std::slice::from_ref(&unknown));
    assert_eq!(rounds(accumulator.of(&unknown).unwrap()), 0);
}

#[test]
fn counters_continue_with_the_next_job_under_a_run_id() {
    let mut accumulator = began(0);
    let first = with_rounds("job", 1, 4);
    accumulator.observe(std::slice::from_ref(&first));
    let mut second = with_rounds("job", 1, 2);
    second.run.life = Some("another".into());
    accumulator.observe(std::slice::from_ref(&second));
    assert_eq!(rounds(accumulator.of(&second).unwrap()), 6);
    // After it was closed, its place was free.
    accumulator.observe(&[closed("job")]);
    assert!(accumulator.of(&second).is_none());
    second.run.life = Some("a third".into());
    accumulator.observe(std::slice::from_ref(&second));
    assert_eq!(rounds(accumulator.of(&second).unwrap()), 2);
}

#[test]
fn present_standstill_counts_and_is_not_counted_twice() {
    let mut accumulator = began(10);
    let still = |seconds| judged(&changing(2, ChangeKind::Lost), seconds);
    let standstill = |accumulator: &Accumulator| accumulator.of(&still(0)).unwrap().standstill_seconds;
    let table = [
        ("10 s of it were before the accumulator began", still(10), 0.0),
        ("it continues", still(14), 4.0),
        ("a clock that goes back changes nothing", still(12), 4.0),
        ("it continues for long", still(310), 300.0),
    ];
    for (what, run, expected) in table {
        accumulator.observe(&[run]);
        assert_near(standstill(&accumulator), expected, what);
    }
    // The coordinator measured 299 s, less than it seemed.
    let mut formed = judged(&running(2), 311);
    formed.rounds = vec![RoundStatus {
        stood_still_seconds: Some(299.0),
        formed_at: Some(START + 311),
        ..round(2, Some(ChangeKind::Lost))
    }];
    accumulator.observe(&[formed.clone()]);
    assert_near(standstill(&accumulator), 300.0, "it has ended");
    formed.rounds.push(RoundStatus {
        stood_still_seconds: Some(6.0),
        formed_at: Some(START + 320),
        ..round(3, Some(ChangeKind::Lost))
    });
    accumulator.observe(&[formed]);
    assert_near(standstill(&accumulator), 299.0 + 6.0, "another one");
}

#[test]
fn false_alarms_are_counted_by_process() {
    let mut accumulator = began(0);
    let alarms = |numbers: [u64; 2]| {
        let mut run = judged(&running(2), 0);
        for (node, number) in run.nodes.iter_mut().zip(numbers) {
            node.false_alarms = number;
        }
        run
    };
    for (what, numbers, expected) in [
        ("the first picture is the beginning", [2, 0], 0),
        ("one more", [3, 0], 1),
        ("of another node", [3, 1], 2),
        ("a process that starts again", [1, 1], 3),
        ("nothing new", [1, 1], 3),
        ("a node that is away", [0, 1], 3),
        ("and returns", [1, 1], 3),
    ] {
        let run = alarms(numbers);
        accumulator.observe(std::slice::from_ref(&run));
        assert_eq!(accumulator.of(&run).unwrap().false_alarms, expected, "{what}");
    }
}

#[test]
fn unavailable_service_changes_no_counter() {
    let mut accumulator = began(3);
    let away = |id: &str| {
        let observation =
            Observation { run_id: id.into(), tenant: "default".into(), ..Observation::default() };
        unreachable(&observation, "refused")
    };
    accumulator.observe(&[with_rounds("job", 1, 2), away("other")]);
    accumulator.observe(&[with_rounds("job", 1, 3), away("other")]);
    let text = accumulator.scrape(Some(picture(&[away("job"), away("other")])));
    assert!(text.contains("lattice_service_up 0\n"), "{text}");
    let expected = [
        r#"lattice_run_state{tenant="default",run="job",state="unreachable"} 1"#,
        r#"lattice_run_rounds_total{tenant="default",run="job",cause="lost"} 1"#,
        "lattice_runs_omitted 0",
    ];
    for line in expected {
        assert!(text.contains(line), "{line} {text}");
    }
    assert!(!text.contains("lattice_run_nodes{"), "{text}");
    let text = accumulator.scrape(None);
    assert!(text.contains("lattice_service_up 0\n") && !text.contains("lattice_run_"), "{text}");
    let runs = [with_rounds("job", 1, 4), with_rounds("other", 1, 2)];
    accumulator.observe(&runs);
    assert_eq!(runs.each_ref().map(|run| rounds(accumulator.of(run).unwrap())), [2, 0]);
}

#[test]
fn hundred_live_runs_have_series_and_keep_them() {
    let name = |number: usize| format!("job-{number:03}");
    let mut accumulator = began(0);
    let mut runs: Vec<RunStatus> = (1..=MOST_RUNS).map(|number| with_rounds(&name(number), 1, 1)).collect();
    let bytes = accumulator.scrape(Some(picture(&runs))).len();
    // One run that would be the first of all, and a closed one.
    runs.push(with_rounds(&name(0), 1, 1));
    runs.push(closed("job-999"));
    let text = accumulator.scrape(Some(picture(&runs)));
    for line in
        ["lattice_runs_omitted 1", r#"lattice_runs{state="formed"} 101"#, r#"lattice_runs{state="closed"} 1"#]
    {
        assert!(text.contains(line), "{line}");
    }
    assert!(!text.contains("job-000") && text.len() < bytes + 100);
    assert!(text.lines().filter(|line| line.contains("run=")).count() <= 90 * MOST_RUNS, "{}", text.len());
    // Live runs that the reader left out count, too.
    let text = accumulator.scrape(Some(Picture { runs: &runs, unread: 5 }));
    assert!(text.contains("lattice_runs_omitted 6"));
    // A place that is free is taken.
    runs[0] = closed(&name(1));
    let text = accumulator.scrape(Some(picture(&runs)));
    assert!(text.contains("lattice_runs_omitted 0") && !text.contains("run=\"job-001\""));
    assert!(text.contains(r#"lattice_run_rounds_total{tenant="default",run="job-000",cause="first"} 1"#));
}

#[test]
fn each_value_is_the_one_of_the_picture() {
    let stuck = || {
        let mut run = judged(&forming(1), 400);
        run.service.latency_seconds = Some(0.25);
        run
    };
    let still = || {
        let mut run = judged(&changing(2, ChangeKind::Lost), 5);
        run.rounds = vec![round(1, None), round(2, Some(ChangeKind::Lost))];
        run
    };
    let waiting_since = format!("lattice_run_waiting_since_timestamp_seconds{{}} {}", at(0));
    let table: [(&str, RunStatus, &[&str]); 2] = [
        (
            "stuck",
            stuck(),
            &[
                "lattice_service_up 1",
                "lattice_service_read_seconds 0.25",
                r#"lattice_runs{state="stuck"} 1"#,
                r#"lattice_run_state{state="stuck"} 1"#,
                r#"lattice_run_state{state="forming"} 0"#,
                r#"lattice_run_phase{phase="forming"} 1"#,
                r#"lattice_run_nodes{state="waiting"} 1"#,
                r#"lattice_run_nodes{state="spare"} 0"#,
                "lattice_run_awaited_nodes{} 1",
                "lattice_run_min_nodes{} 2",
                "lattice_run_max_nodes{} 3",
                "lattice_run_round{} 0",
                &waiting_since,
            ],
        ),
        (
            "changing",
            still(),
            &[
                r#"lattice_run_state{state="forming"} 1"#,
                r#"lattice_run_phase{phase="changing"} 1"#,
                r#"lattice_run_nodes{state="told"} 2"#,
                "lattice_run_round{} 1",
                r#"lattice_run_rounds_total{cause="first"} 1"#,
                r#"lattice_run_rounds_total{cause="lost"} 1"#,
                r#"lattice_run_rounds_total{cause="seeking"} 0"#,
                "lattice_run_standstill_seconds_total{} 7",
                "lattice_run_false_alarms_total{} 0",
                r#"lattice_run_formation_seconds_bucket{le="0.5"} 0"#,
                r#"lattice_run_formation_seconds_bucket{le="1"} 1"#,
                r#"lattice_run_formation_seconds_bucket{le="2.5"} 2"#,
                r#"lattice_run_formation_seconds_bucket{le="+Inf"} 2"#,
                "lattice_run_formation_seconds_sum{} 3",
                "lattice_run_formation_seconds_count{} 2",
                r#"lattice_run_told_seconds_count{evidence="lease"} 1"#,
                r#"lattice_run_told_seconds_sum{evidence="lease"} 2"#,
                r#"lattice_run_told_seconds_count{evidence="connection"} 0"#,
            ],
        ),
    ];
    for (what, run, expected) in table {
        let mut accumulator = began(0);
        let text = accumulator.scrape(Some(picture(&[run])));
        let short =
            text.replace(r#"tenant="default",run="job","#, "").replace(r#"tenant="default",run="job""#, "");
        for line in expected {
            assert!(short.lines().any(|found| found == *line), "{what}: {line}\n{short}");
        }
    }
}

#[test]
fn each_family_has_a_type_and_no_series_appears_twice() {
    let mut accumulator = began(0);
    let text = accumulator
        .scrape(Some(picture(&[with_rounds("a \"quoted\" one\n", 1, 4), with_rounds("job", 1, 2)])));
    let mut types = BTreeMap::new();
    let mut series = BTreeSet::new();
    for line in text.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').unwrap();
            assert_eq!(types.insert(name.to_owned(), kind), None, "{name}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(series.insert(name), "{name}");
            let family = name.split('{').next().unwrap();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|part| family.strip_suffix(part));
            let known = [Some(family), base].into_iter().flatten().any(|name| types.contains_key(name));
            assert!(known && family.starts_with("lattice_"), "{line}");
        }
    }
    assert!(text.contains(r#"run="a \"quoted\" one\n""#), "{text}");
}

/// A state that is added without a series would be missing on dashboards.
#[test]
fn every_state_of_a_node_has_a_series() {
    let states = NodeState::ALL.map(|state| match state {
        NodeState::Member
        | NodeState::Waiting
        | NodeState::Told
        | NodeState::Spare
        | NodeState::Leaving
        | NodeState::Finished
        | NodeState::Excluded
        | NodeState::Missing => state,
    });
    let mut run = judged(&running(2), 0);
    run.counts = states.into_iter().zip(1..).collect();
    let mut accumulator = began(0);
    accumulator.observe(std::slice::from_ref(&run));
    let text = text(Some(picture(&[run])), &accumulator);
    let total: usize = (1..=states.len()).sum();
    let shown = text.lines().filter(|line| line.starts_with("lattice_run_nodes{"));
    let sum: usize = shown.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum();
    assert_eq!(sum, total);
}

/// The words in a text that begin like the name of a metric, without the parts of a histogram.
fn named(text: &str) -> BTreeSet<&str> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    let metrics = words.filter(|word| {
        ["lattice_run_", "lattice_runs", "lattice_service_"].iter().any(|start| word.starts_with(start))
    });
    let base = |word| ["_bucket", "_sum", "_count"].iter().find_map(|part| str::strip_suffix(word, part));
    metrics.map(|word| base(word).unwrap_or(word)).filter(|word| *word != "lattice_run_").collect()
}

#[test]
fn documents_alerts_and_dashboards_name_metrics_that_exist() {
    let mut run = judged(&forming(1), 400);
    run.service.latency_seconds = Some(0.25);
    let text = began(0).scrape(Some(picture(&[run])));
    let exposed: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert_eq!(
        text.lines().filter(|line| line.contains("run=")).count(),
        78,
        "docs/metrics.md names this number"
    );
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let documented = read("docs/metrics.md");
    assert_eq!(named(&documented), exposed);
    for path in ["helm/lattice-rdzv/templates/prometheusrule.yaml", "helm/lattice-rdzv/files/dashboard.json"]
    {
        let content = read(path);
        let names = named(&content);
        assert!(names.len() > 5 && names.is_subset(&exposed), "{path}: {names:?}");
    }
}
