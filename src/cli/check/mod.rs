//! `serin check FILE`: is this configuration right, what is doubtful in it, how long would a rollout take, and what can its
//! gates see?

mod gates;
mod places;
mod timeline;
mod traffic;

use super::Out;
use crate::app::{Resources, SystemClock, doubtful_certificates};
use crate::config::{self, Config, Loaded, Problem, Service};
use crate::model::Clock;
use gates::Sight;
use std::{
    io::{self, Write},
    path::Path,
};
use timeline::timeline;
use traffic::Traffic;

/// Right, perhaps with warnings.
const RIGHT: i32 = 0;
/// Faults, or nobody to tell them to.
const WRONG: i32 = 2;

/// Checks a file and says everything about it; the exit code. What is wrong or doubtful goes where errors go, as pipelines
/// expect of a checker; standard output has what the file comes to.
pub fn run(path: &Path, traffic: Traffic, out: &mut Out) -> i32 {
    let loaded = config::load(path).and_then(|loaded| {
        let unreadable = loaded.config.unreadable_certificates();
        if unreadable.is_empty() {
            Ok(loaded)
        } else {
            Err(unreadable)
        }
    });
    match report(path, &loaded, traffic, out) {
        Ok(code) => code,
        Err(_) => WRONG,
    }
}

fn report(
    path: &Path,
    loaded: &Result<Loaded, Vec<Problem>>,
    traffic: Traffic,
    out: &mut Out,
) -> io::Result<i32> {
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(problems) => {
            for problem in problems {
                out.note(format!("error: {problem}"));
            }
            let s = if problems.len() == 1 { "" } else { "s" };
            out.note(format!("\n{}: {} error{s}", path.display(), problems.len()));
            return Ok(WRONG);
        }
    };
    let config = &loaded.config;
    let doubtful = doubtful_certificates(config, SystemClock::start().wall());
    let doubts = || loaded.warnings.iter().chain(config.not_yet()).chain(&doubtful);
    for problem in doubts() {
        out.note(format!("warning: {problem}"));
    }
    let mut blind = 0;
    for service in &config.services {
        let sight = Sight::of(service, traffic);
        for warning in &sight.warnings {
            out.note(format!("warning: {}: {warning}", service.name));
        }
        blind += sight.warnings.len();
        describe(service, &sight, out)?;
    }
    clients(config, out)?;
    let s = |count: usize, one: &str| format!("{count} {one}{}", if count == 1 { "" } else { "s" });
    let warnings = doubts().count() + blind;
    writeln!(
        out,
        "{}: ok ({}, {}, {})",
        path.display(),
        s(config.services.len(), "service"),
        s(config.templates.len().saturating_sub(1), "template"),
        s(warnings, "warning")
    )?;
    Ok(RIGHT)
}

/// How many clients each listener may have, where this runs.
fn clients(config: &Config, out: &mut Out) -> io::Result<()> {
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let divided = match Resources::estimate(config, workers) {
        Ok(divided) => divided,
        Err(too_few) => {
            out.note(format!("warning: {too_few}"));
            return Ok(());
        }
    };
    let most = divided.clients(config);
    for listener in &config.listeners {
        let mut place = listener.name.clone();
        if place != listener.address.to_string() {
            place = format!("{place} at {}", listener.address);
        }
        let limit = listener.limits.connections.map(u64::from);
        let beyond = limit
            .filter(|limit| *limit > most)
            .map(|limit| format!(", not limits.connections {limit}"));
        writeln!(
            out,
            "listener {place}: up to {} client connections{} where {}, as here",
            limit.map_or(most, |limit| limit.min(most)),
            beyond.unwrap_or_default(),
            divided.scarce(config)
        )?;
    }
    writeln!(out)
}

fn describe(service: &Service, sight: &Sight, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}", service.name)?;
    for (role, block) in [("stable", &service.stable), ("canary", &service.canary)] {
        if let Some(block) = block {
            let endpoints: Vec<String> = block.endpoints.iter().map(ToString::to_string).collect();
            writeln!(out, "  {role} {} at {}", block.version, endpoints.join(", "))?;
        }
    }
    for line in timeline(&service.plan, &service.templates) {
        writeln!(out, "  {line}")?;
    }
    write!(out, "{}", sight.text)?;
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::RefCell, rc::Rc};

    /// What a test reads of what was written.
    #[derive(Clone, Default)]
    struct Page(Rc<RefCell<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The exit code, what the file comes to, and what is wrong with it.
    fn check_at(path: &Path, traffic: Traffic) -> (i32, String, String) {
        let (shown, said) = (Page::default(), Page::default());
        let code = run(
            path,
            traffic,
            &mut Out::to(Box::new(shown.clone()), Box::new(said.clone())),
        );
        let text = |page: Page| String::from_utf8(page.0.take()).unwrap();
        (code, text(shown), text(said))
    }

    fn check(text: &str) -> (i32, String, String) {
        check_with(text, Traffic::default())
    }

    fn check_with(text: &str, traffic: Traffic) -> (i32, String, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("serin.yaml");
        std::fs::write(&path, text).unwrap();
        let (code, shown, said) = check_at(&path, traffic);
        let plain = |text: String| text.replace(&folder.path().display().to_string(), "");
        (code, plain(shown), plain(said))
    }

    const GOOD: &str = "listeners: [{address: '127.0.0.1:8080'}]
services:
- name: app
  stable: {version: v1, endpoints: ['http://127.0.0.1:9001']}
  strategy:
    canary:
      analysis: {templates: [{templateName: slow}], startingStep: 1}
      steps:
      - setWeight: 5
      - pause: {duration: 5m}
      - analysis: {templates: [{templateName: slow}]}
      - pause: {}
      - setWeight: 50
      - pause: {duration: 90s}
analysisTemplates:
- name: slow
  metrics:
  - {name: p99, interval: 1m, count: 5, successCondition: result < 0.5, provider: {serin: {metric: latency}}}
";

    #[test]
    fn a_good_file_shows_its_timeline_and_exits_0() {
        let (code, shown, said) = check(GOOD);
        assert_eq!((code, said.as_str()), (0, ""), "{shown}");
        let expected = "app
  stable v1 at http://127.0.0.1:9001
             +0s  step 0: weight 5%
             +0s  background analysis slow
             +0s  step 1: pause 5m
             +5m  step 2: analysis slow (each measurement needs 20 canary requests: about 400 in all at 5%)
            +10m  step 3: pause until somebody promotes
     promote +0s  step 4: weight 50%
     promote +0s  step 5: pause 1m30s
  promote +1m30s  promoted
  gate p99 decides by the canary's latency alone: slowness that stable shares fails it too, and how often chance does depends on how latencies scatter

/serin.yaml: ok (1 service, 1 template, 0 warnings)
";
        let (before, after) = expected.split_once("/serin.yaml").unwrap();
        // How many clients depends on the machine.
        let rest = shown.strip_prefix(before).unwrap_or_else(|| panic!("{shown}"));
        let (clients, end) = rest.split_once("\n\n").unwrap();
        assert!(
            clients.starts_with("listener 127.0.0.1:8080: up to ")
                && clients.contains(" client connections where ")
        );
        assert_eq!(end, format!("/serin.yaml{after}"));
    }

    #[test]
    fn a_bake_has_its_place_in_the_timeline_and_its_weight_among_the_gates() {
        let held_back = "canary: {holdback: {duration: 30m}, steps: [{setWeight: 5}, {pause: {duration: 5m}}, {setWeight: 100}]}";
        let file = format!("{}\n", &GOOD[..GOOD.find("    canary:").unwrap()]);
        let (code, shown, said) = check(&format!("{file}    {held_back}\n"));
        assert_eq!(code, 0, "{said}");
        for line in [
            // Not by the clock alone: nearly everything follows when the judge has decided something.
            "    evidence +5m  step 2: weight 98%, bake 30m: 2% stays on stable, a regression still rolls back\n",
            "   evidence +35m  promoted\n",
            "  98%",
        ] {
            assert!(shown.contains(line), "{line}\n{shown}");
        }
    }

    #[test]
    fn faults_have_their_places_and_exit_2() {
        let (code, shown, said) = check(
            &GOOD
                .replace("setWeight: 50", "setWieght: 50")
                .replace("name: app", "name: APP"),
        );
        assert_eq!((code, shown.as_str()), (2, ""));
        let lines: Vec<&str> = said.lines().collect();
        assert!(
            lines[0].starts_with("error: /serin.yaml:3:9: services[0].name: `APP`"),
            "{said}"
        );
        assert_eq!(*lines.last().unwrap(), "/serin.yaml: 2 errors", "{said}");
        assert!(said.contains("/serin.yaml:13:9: services[0].strategy.canary.steps[4].setWieght: unknown key; did you mean `setWeight`?"));
    }

    #[test]
    fn warnings_do_not_fail_a_check() {
        let (code, shown, said) = check(&GOOD.replace("setWeight: 5\n", "setWeight: 6\n"));
        assert_eq!(code, 0);
        assert!(
            said.starts_with("warning: /serin.yaml:9:9: services[0].strategy.canary.steps[0]: the first"),
            "{said}"
        );
        assert!(
            shown.ends_with("/serin.yaml: ok (1 service, 1 template, 1 warning)\n"),
            "{shown}"
        );
    }

    #[test]
    fn a_missing_file_says_what_to_do() {
        let (code, shown, said) = check_at(Path::new("/nonexistent/serin.yaml"), Traffic::default());
        assert_eq!((code, shown.as_str()), (2, ""));
        assert!(said.contains("name an existing file"), "{said}");
    }
}
