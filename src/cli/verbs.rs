//! The changing verbs: look where the service stands, say what is expected, send, and wait if asked to.
//!
//! What was seen goes along as `expect`, so that a `promote` that comes late, or twice, cannot release the next gate too.

use super::{
    args::{
        Changing, DeployArgs, EndpointsArgs, Format, PromoteArgs, SetWeightArgs, UndoArgs, VerbArgs, WaitArgs,
    },
    client::{Ask, Client, segment},
    exit::{Exit, Failure},
    github,
    out::Out,
    render,
    wait::{self, Ended, why},
};
use crate::{
    admin::{DeployRequest, EndpointsRequest, PromoteRequest, UndoRequest, VerbRequest, Wait, WeightRequest},
    control::{Expect, OnConflict, ServiceStatus},
    model::{Span, VersionName},
};
use http::Method;
use serde::Serialize;

/// One verb on its way.
struct Verb<'a> {
    client: Client,
    service: &'a str,
    changing: &'a Changing,
    out: &'a mut Out,
}

impl<'a> Verb<'a> {
    fn new(service: &'a str, changing: &'a Changing, out: &'a mut Out) -> Result<Verb<'a>, Failure> {
        Ok(Verb {
            client: Client::of(&changing.target)?,
            service,
            changing,
            out,
        })
    }

    fn path(&self, rest: &str) -> String {
        format!("/v1/services/{}/{rest}", segment(self.service))
    }

    /// Where the service stands, as it will be expected to stand. `version` is what the user says it is about.
    async fn expect(
        &self,
        version: Option<&VersionName>,
        with_step: bool,
    ) -> Result<Option<Expect>, Failure> {
        let ask = Ask::get(format!("/v1/services/{}", segment(self.service)));
        let seen: ServiceStatus = self.client.ask(&ask).await?;
        Ok(Some(Expect {
            version: version.cloned().or(seen.desired),
            step: seen
                .step
                .filter(|_| with_step && seen.canary.is_some())
                .map(|step| step.index),
            generation: None,
        }))
    }

    async fn send<T: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: &T,
    ) -> Result<ServiceStatus, Failure> {
        let fresh = || format!("cli-{:032x}", rand::random::<u128>());
        let key = self.changing.idempotency_key.clone().unwrap_or_else(fresh);
        let ask = Ask::send(method, path, body)?.header("idempotency-key", key);
        self.client.command(&ask).await
    }

    /// Waits if asked to, says how it ended, and gives the code.
    async fn finish(self, version: Option<VersionName>, status: ServiceStatus) -> Result<Exit, Failure> {
        let Some(goal) = self.changing.until.clone() else {
            let said = format!("{}  {}", status.service, render::brief(&status));
            let ended = Ended {
                exit: Exit::Reached,
                status,
            };
            return Ok(tell(&ended, &said, self.changing.output, &self.client, self.out));
        };
        let waiting = Wait {
            goal,
            version: version.or(status.desired),
            through_pauses: self.changing.through_pauses,
        };
        let limit = self.changing.timeout.map(Span::as_duration);
        let ended = wait::wait(&self.client, self.service, &waiting, limit, self.out).await?;
        let said = why(&ended, &waiting);
        Ok(tell(&ended, &said, self.changing.output, &self.client, self.out))
    }
}

/// Says how a command ended, in the format asked for.
fn tell(ended: &Ended, said: &str, format: Format, client: &Client, out: &mut Out) -> Exit {
    match format {
        Format::Text => out.line(said),
        Format::Json => {
            out.line(serde_json::to_string_pretty(&ended.status).unwrap_or_default());
            if ended.exit != Exit::Reached {
                out.note(said);
            }
        }
        Format::Github => {
            out.line(said);
            match github::report(&ended.status, &client.url(), ended.exit, said) {
                Ok(annotation) => annotation.iter().for_each(|line| out.line(line)),
                Err(error) => out.note(format!("cannot write what GitHub Actions reads: {error}")),
            }
        }
    }
    ended.exit
}

/// `serin deploy`.
pub(super) async fn deploy(args: &DeployArgs, out: &mut Out) -> Result<Exit, Failure> {
    let verb = Verb::new(&args.service, &args.changing, out)?;
    // A pipeline that meets somebody else's rollout should say so, not end it.
    let careful = (args.changing.output == Format::Github).then_some(OnConflict::Refuse);
    let body = DeployRequest {
        version: args.version.clone(),
        endpoints: args.endpoints.clone(),
        steps: None,
        on_conflict: args.on_conflict.map(OnConflict::from).or(careful),
        sequence: args.sequence,
        replace: args.replace,
        expect: None,
        reason: args.changing.reason.clone(),
    };
    let status = verb.send(Method::POST, &verb.path("deploy"), &body).await?;
    verb.finish(Some(args.version.clone()), status).await
}

/// `serin endpoints`.
pub(super) async fn endpoints(args: &EndpointsArgs, out: &mut Out) -> Result<Exit, Failure> {
    let verb = Verb::new(&args.service, &args.changing, out)?;
    let body = EndpointsRequest {
        endpoints: args.endpoints.clone(),
        change: args.change.into(),
        expect: None,
        reason: args.changing.reason.clone(),
    };
    let path = verb.path(&format!("versions/{}/endpoints", segment(args.version.as_str())));
    let status = verb.send(Method::PUT, &path, &body).await?;
    verb.finish(Some(args.version.clone()), status).await
}

/// `serin promote`.
pub(super) async fn promote(args: &PromoteArgs, out: &mut Out) -> Result<Exit, Failure> {
    let verb = Verb::new(&args.verb.service, &args.verb.changing, out)?;
    let expect = verb.expect(args.verb.version.as_ref(), true).await?;
    let version = expect.as_ref().and_then(|expect| expect.version.clone());
    let body = PromoteRequest {
        full: args.full,
        skip_analysis: args.skip_analysis,
        expect,
        reason: args.verb.changing.reason.clone(),
    };
    let status = verb.send(Method::POST, &verb.path("promote"), &body).await?;
    verb.finish(version, status).await
}

/// Verbs without more to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plain {
    /// `serin abort`.
    Abort,
    /// `serin retry`.
    Retry,
    /// `serin pause`.
    Pause,
    /// `serin resume`.
    Resume,
}

impl Plain {
    const fn path(self) -> &'static str {
        match self {
            Plain::Abort => "abort",
            Plain::Retry => "retry",
            Plain::Pause => "pause",
            Plain::Resume => "resume",
        }
    }

    /// Whether the step that was seen must still be the current one. Never for what goes towards stable.
    const fn is_about_a_step(self) -> bool {
        match self {
            Plain::Resume => true,
            Plain::Abort | Plain::Retry | Plain::Pause => false,
        }
    }
}

/// `serin abort`, `retry`, `pause`, `resume`.
pub(super) async fn plain(kind: Plain, args: &VerbArgs, out: &mut Out) -> Result<Exit, Failure> {
    let verb = Verb::new(&args.service, &args.changing, out)?;
    let expect = verb.expect(args.version.as_ref(), kind.is_about_a_step()).await?;
    let version = expect.as_ref().and_then(|expect| expect.version.clone());
    let body = VerbRequest {
        expect,
        reason: args.changing.reason.clone(),
    };
    let status = verb.send(Method::POST, &verb.path(kind.path()), &body).await?;
    verb.finish(version, status).await
}

/// `serin undo`.
pub(super) async fn undo(args: &UndoArgs, out: &mut Out) -> Result<Exit, Failure> {
    let verb = Verb::new(&args.verb.service, &args.verb.changing, out)?;
    let expect = verb.expect(args.verb.version.as_ref(), false).await?;
    let body = UndoRequest {
        to: args.to.clone(),
        expect,
        reason: args.verb.changing.reason.clone(),
    };
    let status = verb.send(Method::POST, &verb.path("undo"), &body).await?;
    verb.finish(args.to.clone(), status).await
}

/// `serin set-weight`.
pub(super) async fn set_weight(args: &SetWeightArgs, out: &mut Out) -> Result<Exit, Failure> {
    let verb = Verb::new(&args.service, &args.changing, out)?;
    let expect = verb.expect(args.version.as_ref(), false).await?;
    let version = expect.as_ref().and_then(|expect| expect.version.clone());
    let body = WeightRequest {
        weight: args.weight,
        expect,
        reason: args.changing.reason.clone(),
    };
    let status = verb.send(Method::PUT, &verb.path("weight"), &body).await?;
    verb.finish(version, status).await
}

/// `serin wait`.
pub(super) async fn wait(args: &WaitArgs, out: &mut Out) -> Result<Exit, Failure> {
    let client = Client::of(&args.target)?;
    let version = match &args.version {
        Some(version) => Some(version.clone()),
        // Whoever waits without a name waits for what is asked for now, not for what takes its place.
        None => {
            let ask = Ask::get(format!("/v1/services/{}", segment(&args.service)));
            client.ask::<ServiceStatus>(&ask).await?.desired
        }
    };
    let waiting = Wait {
        goal: args.until.clone(),
        version,
        through_pauses: args.through_pauses,
    };
    let limit = args.timeout.map(Span::as_duration);
    let ended = wait::wait(&client, &args.service, &waiting, limit, out).await?;
    let said = why(&ended, &waiting);
    Ok(tell(&ended, &said, args.output, &client, out))
}
