//! Following a job to its end by long polls: no news is waited for at the controller, not here.

use std::time::{Duration, Instant};

use picket_wire::ids::JobId;

use super::client::Client;
use super::failure::{Exit, Failure};
use super::interrupt::Interrupts;
use super::progress::Progress;
use super::{Context, format};
use crate::view::{JobState, JobView};

/// How long a controller that went away is waited for.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two attempts to reach it again.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// News come at most this often: nobody reads faster, and a controller with much to tell is not asked for each bit of it.
const NEWS_EVERY: Duration = Duration::from_millis(50);

/// What an interrupt means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnInterrupt {
    /// Ask the job to stop and wait for the rest; the second one leaves.
    Cancel,
    /// Leave; the job goes on.
    Leave,
}

/// How following ended.
#[derive(Debug)]
pub(super) enum Followed {
    /// The job is over.
    Over(JobView),
    /// The one who watched left before that.
    Left(JobView),
}

impl Followed {
    /// The job as it was last seen.
    pub(super) fn job(&self) -> &JobView {
        match self {
            Followed::Over(job) | Followed::Left(job) => job,
        }
    }

    /// What a script sees.
    pub(super) fn exit(&self) -> Exit {
        match self {
            Followed::Over(job) if job.state == JobState::Done => Exit::Complete,
            _ => Exit::Incomplete,
        }
    }
}

/// Follows a job until it is over or the user leaves.
pub(super) async fn follow(
    client: &Client,
    mut job: JobView,
    mut progress: Progress,
    on_interrupt: OnInterrupt,
    interrupts: &mut Interrupts,
    context: &mut Context<'_>,
) -> Result<Followed, Failure> {
    let mut asked_to_stop = false;
    let ended = loop {
        progress.show(&job, context.err);
        if job.state.is_final() {
            break Ok(Followed::Over(job));
        }
        let interrupted = tokio::select! {
            newer = news(client, &job) => match newer {
                Ok(newer) => {
                    job = newer;
                    false
                }
                Err(failure) => break Err(failure.hint(format!("the job goes on without this program: picket job watch {}", job.id))),
            },
            () = interrupts.next() => true,
        };
        if !interrupted {
            continue;
        }
        if on_interrupt == OnInterrupt::Leave || asked_to_stop {
            progress.say(&format!("left; job {} is {}", job.id, goes_on(&job)), context.err);
            break Ok(Followed::Left(job));
        }
        asked_to_stop = true;
        progress.say("asking the job to stop; Ctrl-C again leaves without waiting", context.err);
        match cancel(client, job.id, interrupts).await {
            Some(Ok(newer)) => job = newer,
            Some(Err(failure)) => progress.say(&failure.to_string(), context.err),
            None => break Ok(Followed::Left(job)),
        }
    };
    progress.finish();
    ended
}

fn goes_on(job: &JobView) -> String {
    match job.state {
        JobState::Cancelling => "stopping".to_owned(),
        state => format!("{} and goes on: picket job watch {}, picket job cancel {}", format::job_state(state), job.id, job.id),
    }
}

/// Asks a job to stop; `None` where the user did not even wait for that.
async fn cancel(client: &Client, id: JobId, interrupts: &mut Interrupts) -> Option<Result<JobView, Failure>> {
    let id = id.to_string();
    let path = ["jobs", id.as_str(), "cancel"];
    tokio::select! {
        answer = client.post_empty(&path) => Some(answer),
        () = interrupts.next() => None,
    }
}

/// The next state of a job, not sooner than it is good for anything.
async fn news(client: &Client, job: &JobView) -> Result<JobView, Failure> {
    let (newer, ()) = tokio::join!(next(client, job), tokio::time::sleep(NEWS_EVERY));
    newer
}

/// The next state of a job. A controller that is gone for a while is waited for: the job does not need it either.
async fn next(client: &Client, job: &JobView) -> Result<JobView, Failure> {
    let start = Instant::now();
    loop {
        match client.job(job.id, Some(job.version)).await {
            Err(failure) if failure.exit == Exit::Unreachable && start.elapsed() < PATIENCE => tokio::time::sleep(RETRY_EVERY).await,
            answer => return answer,
        }
    }
}
