//! `meterd plans`: lists and creates plans, sets the plan of a client, and shows its fees.

use super::chart::table;
use super::connect::{self, ConnectArgs, Connection};
use super::hints;
use super::period::parse_instant;
use super::time::time_text;
use crate::proto::billing_service_client::BillingServiceClient;
use crate::proto::{
    ClientPlan, CreatePlanRequest, GetPlanFeesRequest, ListClientPlansRequest, ListPlansRequest, Plan, PlanFee,
    SetClientPlanRequest,
};
use clap::{Args, Subcommand};
use prost_types::Timestamp;
use serde_json::json;
use std::process::ExitCode;
use tonic_types::StatusExt;

const CALL_SECONDS: u64 = 30;
const PAGE_SIZE: i32 = 1_000;

/// List and create plans, set the plan of a client, and show its fees
#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct PlansArgs {
    #[command(subcommand)]
    pub command: Option<PlansCommand>,
    #[command(flatten)]
    pub list: ListArgs,
}

/// Subcommands of `plans`.
#[derive(Subcommand, Clone, Debug)]
pub enum PlansCommand {
    /// List plans, ordered by id (the default)
    List(ListArgs),
    /// Create a plan
    ///
    /// A plan does not change: another fee is another plan. `meterd prices set SERVICE --plan PLAN` sets prices of the plan.
    Create(CreateArgs),
    /// Set the plan of a client from a time on
    ///
    /// The prices of the plan apply to usage that is recorded after it. Usage that is already recorded keeps its charge;
    /// `meterd prices reprice` changes it.
    Set(SetArgs),
    /// List the changes of the plan of a client, past and future
    History(HistoryArgs),
    /// Show the fees of a client for a month
    ///
    /// If the plan changes within the month, each plan is charged for its days. A day belongs to the plan that the client has at its
    /// end.
    Fees(FeesArgs),
}

/// Arguments of `plans list`.
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    /// Print JSON, one plan per line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Arguments of `plans create`.
#[derive(Args, Clone, Debug)]
pub struct CreateArgs {
    /// Id of the plan
    #[arg(value_name = "PLAN")]
    pub plan: String,
    /// Fee of a month, in the currency of the deployment, such as 29.00
    #[arg(long, default_value = "0", value_name = "AMOUNT")]
    pub fee: String,
    /// Credits for each month, such as 10.00
    #[arg(long, default_value = "0", value_name = "AMOUNT")]
    pub credits: String,
    /// Number of further months in which the credits of a month can be used
    #[arg(long, default_value_t = 0, value_name = "MONTHS")]
    pub rollover: i32,
    /// Name shown to people
    #[arg(long, default_value = "", value_name = "TEXT", hide_default_value = true)]
    pub name: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Arguments of `plans set`.
#[derive(Args, Clone, Debug)]
pub struct SetArgs {
    /// Id of the client
    #[arg(value_name = "CLIENT")]
    pub client: String,
    /// Id of the plan
    #[arg(value_name = "PLAN", required_unless_present = "none")]
    pub plan: Option<String>,
    /// The client has no plan any more
    #[arg(long, conflicts_with = "plan")]
    pub none: bool,
    /// Time from which the client has the plan, such as 2027-01-01T00:00:00Z [default: now]
    #[arg(long, value_name = "TIME", value_parser = parse_instant)]
    pub from: Option<Timestamp>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Arguments of `plans history`.
#[derive(Args, Clone, Debug)]
pub struct HistoryArgs {
    /// Id of the client
    #[arg(value_name = "CLIENT")]
    pub client: String,
    /// Print JSON, one change per line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Arguments of `plans fees`.
#[derive(Args, Clone, Debug)]
pub struct FeesArgs {
    /// Id of the client
    #[arg(value_name = "CLIENT")]
    pub client: String,
    /// Month in the client's time zone, such as 2026-11 [default: the current month]
    #[arg(long, default_value = "", value_name = "YYYY-MM", hide_default_value = true)]
    pub month: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Runs the subcommand.
pub async fn run(args: PlansArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        None => list(args.list).await?,
        Some(PlansCommand::List(args)) => list(args).await?,
        Some(PlansCommand::Create(args)) => create(args).await?,
        Some(PlansCommand::Set(args)) => set(args).await?,
        Some(PlansCommand::History(args)) => history(args).await?,
        Some(PlansCommand::Fees(args)) => fees(args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

fn service(channel: &Connection) -> BillingServiceClient<Connection> {
    connect::billing_client(channel.clone())
}

async fn list(args: ListArgs) -> anyhow::Result<()> {
    let plans = plans(&args.connect, &args.connect.channel().await?).await;
    let plans = plans.map_err(|status| connect::status_error(&status))?;
    match args.json {
        true => plans.iter().for_each(|plan| println!("{}", plan_json(plan))),
        false => plan_table(&plans).iter().for_each(|line| println!("{line}")),
    }
    Ok(())
}

/// Returns all plans.
async fn plans(connect: &ConnectArgs, channel: &Connection) -> Result<Vec<Plan>, tonic::Status> {
    let (mut plans, mut page_token) = (vec![], String::new());
    loop {
        let request = ListPlansRequest { page_size: PAGE_SIZE, page_token };
        let page = service(channel).list_plans(connect.request(request, CALL_SECONDS)).await?.into_inner();
        plans.extend(page.plans);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(plans);
        }
    }
}

async fn create(args: CreateArgs) -> anyhow::Result<()> {
    let plan = Plan {
        plan_id: args.plan,
        display_name: args.name,
        monthly_fee: args.fee,
        included_credits: args.credits,
        rollover_months: args.rollover,
        ..Default::default()
    };
    let request = CreatePlanRequest { plan: Some(plan), request_id: String::new() };
    let answer = service(&args.connect.channel().await?).create_plan(args.connect.request(request, CALL_SECONDS)).await;
    let plan = answer.map_err(|status| connect::status_error(&status))?.into_inner().plan.unwrap_or_default();
    match args.json {
        true => println!("{}", plan_json(&plan)),
        false => plan_table(&[plan]).iter().for_each(|line| println!("{line}")),
    }
    Ok(())
}

async fn set(args: SetArgs) -> anyhow::Result<()> {
    let channel = args.connect.channel().await?;
    let plan_id = args.plan.unwrap_or_default();
    let request =
        SetClientPlanRequest { client_id: args.client.clone(), plan_id: plan_id.clone(), effective_time: args.from };
    let change = match service(&channel).set_client_plan(args.connect.request(request, CALL_SECONDS)).await {
        Ok(answer) => answer.into_inner().client_plan.unwrap_or_default(),
        Err(status) if status.get_error_details().error_info().is_some_and(|info| info.reason == "PLAN_NOT_FOUND") => {
            let known = plans(&args.connect, &channel).await.unwrap_or_default();
            let known: Vec<&str> = known.iter().map(|plan| plan.plan_id.as_str()).collect();
            let hint = hints::did_you_mean(&plan_id, known.iter().copied());
            let hint = hint.unwrap_or_else(|| format!("plans are {}", known.join(", ")));
            anyhow::bail!("{}\n  {hint}", connect::status_error(&status));
        }
        Err(status) => return Err(hints::client_error(&args.connect, &channel, &status, &args.client).await),
    };
    print_changes(&[change], args.json);
    Ok(())
}

async fn history(args: HistoryArgs) -> anyhow::Result<()> {
    let channel = args.connect.channel().await?;
    let (mut changes, mut page_token) = (vec![], String::new());
    loop {
        let request = ListClientPlansRequest { client_id: args.client.clone(), page_size: PAGE_SIZE, page_token };
        let page = match service(&channel).list_client_plans(args.connect.request(request, CALL_SECONDS)).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return Err(hints::client_error(&args.connect, &channel, &status, &args.client).await),
        };
        changes.extend(page.client_plans);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    match changes.is_empty() && !args.json {
        true => println!("{0} has never had a plan: `meterd plans set {0} PLAN` sets one", args.client),
        false => print_changes(&changes, args.json),
    }
    Ok(())
}

async fn fees(args: FeesArgs) -> anyhow::Result<()> {
    let channel = args.connect.channel().await?;
    let request = GetPlanFeesRequest { client_id: args.client.clone(), month: args.month };
    let found = match service(&channel).get_plan_fees(args.connect.request(request, CALL_SECONDS)).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Err(hints::client_error(&args.connect, &channel, &status, &args.client).await),
    };
    if args.json {
        let fees: Vec<_> = found.fees.iter().map(fee_json).collect();
        let (month, currency, total) = (&found.month, &found.currency, &found.total);
        println!("{}", json!({ "month": month, "currency": currency, "fees": fees, "total": total }));
    } else if found.fees.is_empty() {
        println!("{} has no plan in {}", args.client, found.month);
    } else {
        fee_table(&found.fees, &found.total).iter().for_each(|line| println!("{line}"));
        println!("in {}; each fee is the monthly fee × days / days of the month", found.currency);
    }
    Ok(())
}

fn plan_table(plans: &[Plan]) -> Vec<String> {
    let header = ["plan", "name", "monthly fee", "credits", "rollover", "built in"].map(str::to_owned).to_vec();
    let row = |plan: &Plan| {
        let built_in = if plan.built_in { "yes" } else { "no" };
        let rollover = match plan.rollover_months {
            0 => "none".to_owned(),
            1 => "1 month".to_owned(),
            months => format!("{months} months"),
        };
        let Plan { plan_id, display_name, monthly_fee, included_credits, .. } = plan.clone();
        vec![plan_id, display_name, monthly_fee, included_credits, rollover, built_in.to_owned()]
    };
    let rows: Vec<_> = std::iter::once(header).chain(plans.iter().map(row)).collect();
    table(&rows, &[false, false, true, true, false, false])
}

fn plan_json(plan: &Plan) -> serde_json::Value {
    json!({
        "plan_id": plan.plan_id,
        "display_name": plan.display_name,
        "monthly_fee": plan.monthly_fee,
        "included_credits": plan.included_credits,
        "rollover_months": plan.rollover_months,
        "built_in": plan.built_in,
        "create_time": time_text(plan.create_time.as_ref()),
    })
}

fn print_changes(changes: &[ClientPlan], json: bool) {
    if json {
        for ClientPlan { plan_id, effective_time, create_time } in changes {
            let (from, set) = (time_text(effective_time.as_ref()), time_text(create_time.as_ref()));
            println!("{}", json!({ "plan_id": plan_id, "effective_time": from, "create_time": set }));
        }
        return;
    }
    let header = ["from", "plan", "set at"].map(str::to_owned).to_vec();
    let row = |change: &ClientPlan| {
        let plan = if change.plan_id.is_empty() { "(none)" } else { &change.plan_id };
        vec![time_text(change.effective_time.as_ref()), plan.to_owned(), time_text(change.create_time.as_ref())]
    };
    let rows: Vec<_> = std::iter::once(header).chain(changes.iter().map(row)).collect();
    table(&rows, &[false; 3]).iter().for_each(|line| println!("{line}"));
}

fn fee_table(fees: &[PlanFee], total: &str) -> Vec<String> {
    let header = ["plan", "from", "to", "days", "monthly fee", "amount"].map(str::to_owned).to_vec();
    let row = |fee: &PlanFee| {
        let PlanFee { plan_id, first_date, last_date, days, monthly_fee, amount } = fee.clone();
        vec![plan_id, first_date, last_date, days.to_string(), monthly_fee, amount]
    };
    let mut sum = vec![String::new(); 6];
    (sum[0], sum[5]) = ("total".to_owned(), total.to_owned());
    let rows: Vec<_> = std::iter::once(header).chain(fees.iter().map(row)).chain([sum]).collect();
    table(&rows, &[false, false, false, true, true, true])
}

fn fee_json(fee: &PlanFee) -> serde_json::Value {
    json!({
        "plan_id": fee.plan_id,
        "first_date": fee.first_date,
        "last_date": fee.last_date,
        "days": fee.days,
        "monthly_fee": fee.monthly_fee,
        "amount": fee.amount,
    })
}
