//! Registering, logging in and out, and who one is.
use axum::{
    Extension, Json as JsonBody,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use platform::{
    audit::{Event, EventResult, EventType},
    http::{
        client_address::ClientAddress,
        extract::Json,
        problem::{BAD_CREDENTIALS, Problem, ProblemBody, TOO_MANY_REQUESTS, UNAUTHENTICATED},
    },
    identity::Caller,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Accounts, Role,
    attempts::{Counted, Pseudonym},
    metrics::AUTHENTICATION_FAILURES,
    model::{Credentials, Email, NewSession, NewUser, Password, PasswordChange, User},
    sessions::{self, Token},
    users,
};

/// The routes of accounts.
pub fn routes() -> OpenApiRouter<Accounts> {
    OpenApiRouter::new()
        .routes(routes!(register))
        .routes(routes!(log_in))
        .routes(routes!(log_out))
        .routes(routes!(show_me))
        .routes(routes!(change_password))
}

/// Register as a customer
#[utoipa::path(
    post, path = "/v1/users", tag = "accounts", request_body = NewUser,
    responses(
        (status = 201, description = "You are registered", body = User),
        (status = 409, description = "Somebody has this e-mail address", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
async fn register(
    State(accounts): State<Accounts>,
    Extension(client): Extension<ClientAddress>,
    Json(new): Json<NewUser>,
) -> Result<Response, Problem> {
    accounts.limit(client)?;
    let email =
        Email::parse(&new.email).ok_or_else(|| Problem::malformed("The e-mail address cannot be read."))?;
    let hash = accounts.passwords.hash(&new.password).await?;
    let user = users::create(&accounts.database, &email, &new.name, &hash, Role::Customer).await?;
    Ok((StatusCode::CREATED, [(header::LOCATION, HeaderValue::from_static("/v1/me"))], JsonBody(user))
        .into_response())
}

/// Log in
///
/// A wrong password, an unknown address and a locked account get the same answer, and take the same time.
#[utoipa::path(
    post, path = "/v1/sessions", tag = "accounts", request_body = Credentials,
    responses(
        (status = 201, description = "You are logged in", body = NewSession),
        (status = 401, description = "The credentials are not valid", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
async fn log_in(
    State(accounts): State<Accounts>,
    Extension(client): Extension<ClientAddress>,
    Json(credentials): Json<Credentials>,
) -> Result<Response, Problem> {
    accounts.limit(client)?;
    let user = accounts.recognise(&credentials, client).await?;
    let token = Token::generate()?;
    let expires_at = sessions::begin(&accounts.database, &user, &token, accounts.session_ttl).await?;
    let session = NewSession { token: token.into_text(), expires_at, user };
    Ok((StatusCode::CREATED, JsonBody(session)).into_response())
}

/// Log out
#[utoipa::path(
    delete, path = "/v1/sessions/current", tag = "accounts", security(("session" = [])),
    responses((status = 204, description = "You are logged out"))
)]
async fn log_out(State(accounts): State<Accounts>, caller: Caller) -> Result<StatusCode, Problem> {
    sessions::end(&accounts.database, &caller).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Who am I
#[utoipa::path(
    get, path = "/v1/me", tag = "accounts", security(("session" = [])),
    responses((status = 200, description = "You", body = User))
)]
async fn show_me(State(accounts): State<Accounts>, caller: Caller) -> Result<JsonBody<User>, Problem> {
    Ok(JsonBody(accounts.known(caller).await?.user))
}

/// Change the password
///
/// Every session of the user ends, this one included.
#[utoipa::path(
    put, path = "/v1/me/password", tag = "accounts", request_body = PasswordChange, security(("session" = [])),
    responses((status = 204, description = "The password is changed; log in again"))
)]
async fn change_password(
    State(accounts): State<Accounts>,
    Extension(client): Extension<ClientAddress>,
    caller: Caller,
    Json(change): Json<PasswordChange>,
) -> Result<StatusCode, Problem> {
    accounts.limit(client)?;
    let known = accounts.known(caller).await?;
    let credentials = Credentials { email: known.user.email, password: change.current_password };
    accounts.recognise(&credentials, client).await?;
    let hash = accounts.passwords.hash(&change.new_password).await?;
    users::change_password(&accounts.database, caller.user_id, &hash).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl Accounts {
    /// Hashing is dear: one address may ask for only so many.
    fn limit(&self, client: ClientAddress) -> Result<(), Problem> {
        let checked = self.by_address.check(&client.network());
        checked.map_err(|seconds| Problem::new(TOO_MANY_REQUESTS).retry_after(seconds))
    }

    async fn known(&self, caller: Caller) -> Result<users::Known, Problem> {
        users::by_id(&self.database, caller.user_id).await?.ok_or_else(|| Problem::new(UNAUTHENTICATED))
    }

    /// Whose credentials these are. The attempt is counted before the password is looked at, and a hash is
    /// computed in every case.
    async fn recognise(&self, credentials: &Credentials, client: ClientAddress) -> Result<User, Problem> {
        let (counted, pseudonym) =
            self.lockout.count(&self.database, &credentials.email, client.address).await?;
        let known = match Email::parse(&credentials.email) {
            Some(email) => users::by_email(&self.database, &email).await?,
            None => None,
        };
        let (user, hash) = known.map(|known| (known.user, known.password_hash)).unzip();
        let fits = self.passwords.verify(&credentials.password, hash.clone()).await?;
        match (fits, counted, user) {
            (true, Counted::Allowed, Some(user)) => {
                self.lockout.forget(&self.database, &credentials.email, client.address).await?;
                self.renew(&user, &credentials.password, hash.unwrap_or_default()).await?;
                Ok(user)
            }
            (_, counted, user) => Err(self.refuse(counted, user, pseudonym).await),
        }
    }

    /// Hashes the password anew if its hash has other parameters than those of today.
    async fn renew(&self, user: &User, password: &Password, hash: String) -> Result<(), Problem> {
        if self.passwords.is_outdated(&hash) {
            let renewed = self.passwords.hash(password).await?;
            users::renew_hash(&self.database, user, &hash, &renewed).await?;
        }
        Ok(())
    }

    async fn refuse(&self, counted: Counted, user: Option<User>, pseudonym: Pseudonym) -> Problem {
        let (reason, action) = match counted {
            Counted::Allowed => ("bad_credentials", "login"),
            Counted::LockedOut { just_now: true } => ("locked_out", "lockout"),
            Counted::LockedOut { just_now: false } => ("locked_out", "login"),
        };
        AUTHENTICATION_FAILURES.with_label_values(&[reason]).inc();
        let mut event = Event::new(EventType::Authentication, "sessions", action, EventResult::Failure)
            .with("reason", reason);
        event = match user {
            Some(user) => event.by(user.id, user.role.as_str()),
            None => event.with("unknown_account", pseudonym.into_text()),
        };
        match self.refusals.record(event).await {
            Ok(()) => Problem::new(BAD_CREDENTIALS),
            Err(error) => error.into(),
        }
    }
}
