//! `serin demo`: the whole story in about a minute, in one process, with nothing to prepare.
//!
//! Two versions of a small service, Serin in front of them, a gentle load. A healthy canary is deployed and promoted;
//! then one that fails 5 % of its requests is deployed and pulled back, both by the judge. Nothing is staged: it is the real
//! proxy, the real judge and the real store (in memory), told apart from `serve` only by where the configuration comes from.

mod load;
mod screen;
mod service;

use crate::{
    app::{AppError, Options, Passed, Serin},
    config,
    control::{Caller, Command, Deploy, ServiceStatus, StoreChoice},
    model::{EndpointUrl, VersionName},
    rollout::Phase,
};
use anyhow::{Context, bail};
use load::Load;
use rand::Rng;
use screen::Screen;
use service::Sample;
use std::{io::Write, num::NonZeroUsize, path::Path, time::Duration};
use tokio::time::Instant;

/// What `demo` is told.
#[derive(Debug, Clone, Default)]
pub struct DemoArgs {
    /// Keep everything running at the end, until Ctrl-C.
    pub hold: bool,
}

const SERVICE: &str = "shop";
/// Requests per second of the load.
const RATE: u32 = 400;
/// A rollout that takes longer than this has gone wrong.
const PATIENCE: Duration = Duration::from_secs(90);

/// The default plan and gate, but for what makes it seconds where production takes minutes: it looks at errors only, for latencies
/// need thousands of requests more, and content with ruling out ten times the usual harm. The risk of a false rollback is the
/// usual one.
const CONFIGURATION: &str = r#"
listeners: [{name: web, address: "127.0.0.1:0"}]
admin:
  address: 127.0.0.1:0
  socket: ${DEMO_SOCKET}
  tokens: [{name: demo, role: admin, secret: "${DEMO_TOKEN}"}]
services:
  - name: shop
    stable: {version: v1, endpoints: ["${DEMO_V1}"]}
    ready: {http: /healthz, progressDeadline: 20s}
    deploy: {allowedEndpoints: ["127.0.0.0/8"]}
    strategy:
      canary:
        analysis: {templates: [{templateName: no-worse}]}
        auto: {weights: [5, 25, 50]}
analysisTemplates:
  - name: no-worse
    metrics:
      - name: no-worse
        judge: {harmBudget: 1pp, latency: {quantiles: []}, minStep: 5s}
"#;

/// What is about to be seen.
const JUDGE: &str = "The judge looks at every request. Serin itself gives the canary its share of the traffic, so of failures that hit both
versions alike the canary has that share; more is evidence against it. It is rolled back when chance alone would show
as much in less than 1 % of all rollouts of a healthy version. It goes on once more harm than allowed is ruled out,
which takes requests: silence is no evidence.
";

/// Runs the demo; true when both rollouts came out as they should.
pub fn run(args: &DemoArgs, out: &mut dyn Write) -> anyhow::Result<bool> {
    // Serin's own log lines would tear the picture.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(story(args, out))
}

async fn story(args: &DemoArgs, out: &mut dyn Write) -> anyhow::Result<bool> {
    let folder = Folder::make()?;
    let v1 = Sample::start("v1", 0.0).await?;
    let v2 = Sample::start("v2", 0.0).await?;
    let v3 = Sample::start("v3", 0.05).await?;
    let token = format!("{:032x}", rand::rng().next_u64());
    let serin = start(&folder.0, &v1, &token).await?;
    let web = serin
        .addresses()
        .listeners
        .first()
        .and_then(|(_, address)| *address)
        .context("the demo has a listener")?;
    let load = Load::start(web, RATE);
    let mut screen = Screen::new(out);

    screen.say(&format!(
        "serin demo: one process, three copies of a small service, {RATE} requests/s through http://{web}/\n"
    ))?;
    let began = Instant::now();
    screen.say(JUDGE)?;
    screen.say("1. v1 is stable. Deploying v2, which is healthy: 5 %, 25 %, 50 %, each until the judge has seen enough.")?;
    let good = rollout(
        &serin,
        &load,
        &mut screen,
        &v2,
        &[Phase::Healthy, Phase::Degraded],
    )
    .await?;
    let promoted = good.phase == Phase::Healthy && good.stable.as_ref().is_some_and(|v| v.as_str() == "v2");
    screen.say(if promoted {
        "   v2 is promoted: it is the stable version now.\n"
    } else {
        "   v2 was not promoted.\n"
    })?;

    screen.say("2. v2 is stable. Deploying v3, which answers 500 to 5 % of its requests: at 5 % that is one request in 400.")?;
    let before = load.counts();
    let bad = rollout(
        &serin,
        &load,
        &mut screen,
        &v3,
        &[Phase::Healthy, Phase::Degraded],
    )
    .await?;
    let pulled = bad.phase == Phase::Degraded && bad.stable.as_ref().is_some_and(|v| v.as_str() == "v2");
    let why = bad
        .aborted
        .as_ref()
        .map_or(bad.message.as_str(), |aborted| aborted.message.as_str());
    screen.say(&if pulled {
        format!("   v3 is pulled back by itself: {why}\n")
    } else {
        "   v3 was not pulled back.\n".to_owned()
    })?;

    let counts = load.counts();
    screen.say("Summary")?;
    screen.say(&format!(
        "   v2 (healthy)        {}",
        verdict(promoted, "promoted")
    ))?;
    screen.say(&format!(
        "   v3 (5 % failing)    {}",
        verdict(pulled, "rolled back")
    ))?;
    screen.say(&format!(
        "   {} requests in {:.0} s, {} answered with an error, all by v3 while it was on trial ({} since its deploy), {} broken off",
        counts.answered,
        began.elapsed().as_secs_f64(),
        counts.errors,
        counts.errors - before.errors,
        counts.broken,
    ))?;
    let right = promoted && pulled && counts.broken == 0 && before.errors == 0;
    if args.hold {
        hold(&serin, &mut screen, web, &token).await?;
    }
    load.stop().await;
    serin.stop(std::future::pending()).await;
    drop((v1, v2, v3));
    Ok(right)
}

fn verdict(right: bool, word: &str) -> String {
    if right {
        format!("{word}, as it should be")
    } else {
        format!("NOT {word}: this is a bug, please report it")
    }
}

async fn start(folder: &Path, v1: &Sample, token: &str) -> anyhow::Result<Serin> {
    let (socket, v1) = (folder.join("serin.sock").display().to_string(), v1.url());
    let variable = |name: &str| match name {
        "DEMO_SOCKET" => Some(socket.clone()),
        "DEMO_TOKEN" => Some(token.to_owned()),
        "DEMO_V1" => Some(v1.clone()),
        _ => None,
    };
    let loaded =
        config::load_text(CONFIGURATION, "demo.yaml", folder, &variable).map_err(AppError::Config)?;
    let options = Options {
        workers: NonZeroUsize::new(2),
        store: Some(StoreChoice::Memory),
        file: None,
        passed: Passed::default(),
    };
    Ok(Serin::start(loaded.config, options).await?)
}

/// Deploys a version and shows what happens until the service is in one of `ends` again.
async fn rollout(
    serin: &Serin,
    load: &Load,
    screen: &mut Screen<'_>,
    sample: &Sample,
    ends: &[Phase],
) -> anyhow::Result<ServiceStatus> {
    let version = VersionName::new(sample.name)?;
    let endpoint: EndpointUrl = sample.url().parse()?;
    let caller = Caller {
        actor: "demo".to_owned(),
        role: "admin".to_owned(),
        source: "demo".to_owned(),
        ..Caller::default()
    };
    let known = serin.control().events(Some(SERVICE), 0, 1000).await?;
    let mut told = known.last().map_or(0, |event| event.id);
    let deploy = Command::Deploy(Deploy::of(version.clone(), vec![endpoint]));
    serin
        .control()
        .command(SERVICE, deploy, crate::control::Expect::default(), caller)
        .await
        .map_err(|refused| anyhow::anyhow!("the deploy of {version} was refused: {}", refused.message))?;
    let began = Instant::now();
    let mut every = tokio::time::interval(Duration::from_millis(500));
    loop {
        every.tick().await;
        for event in serin.control().events(Some(SERVICE), told, 100).await? {
            told = event.id;
            let why = event.detail["by"]["message"].as_str();
            if let Some(why) = why.filter(|_| event.event == "evidence_suffices") {
                screen.say(&format!("   {why}"))?;
            }
        }
        let status = serin
            .control()
            .status(SERVICE)
            .context("the demo's service is there")?;
        let over = ends.contains(&status.phase) && status.desired.as_ref() == Some(&version);
        screen.show(&status, &load.counts(), began.elapsed(), over)?;
        if over {
            return Ok(status);
        }
        if began.elapsed() > PATIENCE {
            bail!(
                "the rollout of {version} has not ended after {} s: {}",
                PATIENCE.as_secs(),
                status.message
            );
        }
    }
}

async fn hold(
    serin: &Serin,
    screen: &mut Screen<'_>,
    web: std::net::SocketAddr,
    token: &str,
) -> anyhow::Result<()> {
    let addresses = serin.addresses();
    let admin = addresses.admin;
    screen.say(&format!(
        "\nEverything keeps running until Ctrl-C:\n   service   http://{web}/\n   status    http://{admin}/\n   metrics   http://{admin}/metrics\n   socket    {}\n   token     {token}   (role admin)\n\nTry:\n   serin get shop --server http://{admin}\n   curl -s http://{admin}/v1/services/shop",
        addresses.socket.display()
    ))?;
    tokio::signal::ctrl_c().await?;
    Ok(())
}

/// A folder of our own that goes with us.
struct Folder(std::path::PathBuf);

impl Folder {
    fn make() -> anyhow::Result<Folder> {
        let path = std::env::temp_dir().join(format!(
            "serin-demo-{}-{:08x}",
            std::process::id(),
            rand::rng().next_u32()
        ));
        std::fs::create_dir(&path).with_context(|| format!("make the folder {}", path.display()))?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Left behind, it would only be an empty folder among temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_is_judged_and_its_configuration_is_one_that_check_likes() {
        let variable = |name: &str| match name {
            "DEMO_SOCKET" => Some("serin.sock".to_owned()),
            "DEMO_TOKEN" => Some("0123456789abcdef0123456789abcdef".to_owned()),
            "DEMO_V1" => Some("http://127.0.0.1:9001".to_owned()),
            _ => None,
        };
        let loaded = config::load_text(CONFIGURATION, "demo.yaml", Path::new("."), &variable);
        let loaded = loaded.unwrap_or_else(|problems| panic!("{problems:#?}"));
        assert!(loaded.warnings.is_empty(), "{:#?}", loaded.warnings);
        let service = &loaded.config.services[0];
        let background = service.plan.background().unwrap();
        let gates: Vec<&str> = background
            .analysis
            .templates
            .iter()
            .map(|template| template.template_name.as_str())
            .collect();
        assert_eq!(gates, ["no-worse"]);
        assert!(loaded.config.templates["no-worse"].has_judge());
    }
}
