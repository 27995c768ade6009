//! Registration, login, logout and the current user.
use axum::{
    Extension, Json as JsonBody,
    extract::{FromRequestParts, State},
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use platform::{
    audit::{Event, EventResult, EventType},
    http::{
        client_address::ClientAddress,
        extract::Json,
        problem::{BAD_CREDENTIALS, FieldError, Problem, ProblemBody, TOO_MANY_REQUESTS, UNAUTHENTICATED},
    },
    identity::Caller,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Accounts, Role,
    attempts::{AttemptResult, Pseudonym},
    metrics::AUTHENTICATION_FAILURES,
    model::{Credentials, Email, NewSession, NewUser, Password, PasswordChange, User},
    sessions::{self, Token},
    users,
};

/// Returns the routes of accounts.
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
        (
            status = 201, description = "The registered user", body = User,
            headers(("location" = String, description = "The user, once logged in")),
            links(("log_in" = (
                operation_id = "log_in",
                request_body = json!({ "email": "{$request.body#/email}", "password": "{$request.body#/password}" }),
                description = "The credentials are those of the registration."
            )))
        ),
        (status = 409, description = "The e-mail address belongs to another user", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Invalid request, or the password is a common one", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
async fn register(
    State(accounts): State<Accounts>,
    _limit: LimitedClient,
    Json(new): Json<NewUser>,
) -> Result<Response, Problem> {
    let email = Email::parse(&new.email).ok_or_else(|| Problem::malformed("Invalid e-mail address."))?;
    let hash = accounts.passwords.hash(&new.password).await?;
    let user = users::create(&accounts.database, &email, &new.name, &hash, Role::Customer).await?;
    Ok((StatusCode::CREATED, [(header::LOCATION, HeaderValue::from_static("/v1/me"))], JsonBody(user))
        .into_response())
}

/// Log in
/// A wrong password, an unknown address and a locked account get the same response after the same time.
#[utoipa::path(
    post, path = "/v1/sessions", tag = "accounts", request_body = Credentials,
    responses(
        (status = 201, description = "The new session", body = NewSession),
        (status = 401, description = "Invalid credentials", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
async fn log_in(
    State(accounts): State<Accounts>,
    LimitedClient(client): LimitedClient,
    Json(credentials): Json<Credentials>,
) -> Result<Response, Problem> {
    let token = Token::generate()?;
    for _ in 0..MAX_VERIFICATIONS {
        let current_user = accounts.recognise(&credentials, client).await?;
        let hash = accounts.rehash_if_outdated(&current_user, &credentials.password).await?;
        let ttl = accounts.session_ttl;
        if let Some(expires_at) =
            sessions::begin(&accounts.database, &current_user.user, &hash, &token, ttl).await?
        {
            let session = NewSession { token: token.into_text(), expires_at, user: current_user.user };
            return Ok((StatusCode::CREATED, JsonBody(session)).into_response());
        }
    }
    Err(Problem::unavailable(1))
}

/// Log out
#[utoipa::path(
    delete, path = "/v1/sessions/current", tag = "accounts", security(("session" = [])),
    responses((status = 204, description = "The session has ended"))
)]
async fn log_out(State(accounts): State<Accounts>, caller: Caller) -> Result<StatusCode, Problem> {
    sessions::end(&accounts.database, &caller).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Show the current user
#[utoipa::path(
    get, path = "/v1/me", tag = "accounts", security(("session" = [])),
    responses((status = 200, description = "The current user", body = User))
)]
async fn show_me(State(accounts): State<Accounts>, caller: Caller) -> Result<JsonBody<User>, Problem> {
    Ok(JsonBody(accounts.current_user(caller).await?.user))
}

/// Change the password
/// Ends every session of the user, including the current one.
#[utoipa::path(
    put, path = "/v1/me/password", tag = "accounts", request_body = PasswordChange, security(("session" = [])),
    responses(
        (status = 204, description = "The password was changed, and all sessions have ended"),
        (status = 422, description = "Invalid request, or the new password is a common one", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
async fn change_password(
    State(accounts): State<Accounts>,
    caller: Caller,
    LimitedClient(client): LimitedClient,
    Json(change): Json<PasswordChange>,
) -> Result<StatusCode, Problem> {
    let user = accounts.current_user(caller).await?.user;
    if let Some(weakness) = change.new_password.weakness(&user.email, &user.name) {
        return Err(Problem::invalid(vec![FieldError::new("/new_password", weakness)]));
    }
    let credentials = Credentials { email: user.email, password: change.current_password };
    for _ in 0..MAX_VERIFICATIONS {
        let current_user = accounts.recognise(&credentials, client).await?;
        let hash = accounts.passwords.hash(&change.new_password).await?;
        if users::change_password(&accounts.database, &current_user, &hash).await? {
            return Ok(StatusCode::NO_CONTENT);
        }
    }
    Err(Problem::unavailable(1))
}

/// Maximum number of verifications of one request's credentials. The second verification follows if the hash was
/// replaced after the first. Either another password replaced it, and the request is rejected, or a concurrent login
/// renewed the hash.
const MAX_VERIFICATIONS: u32 = 2;

/// A client within the limit of logins and registrations. It is an extractor, so that a request over the limit is
/// rejected before its body is read, because hashing is expensive.
struct LimitedClient(ClientAddress);

impl FromRequestParts<Accounts> for LimitedClient {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, accounts: &Accounts) -> Result<Self, Problem> {
        let client = Extension::<ClientAddress>::from_request_parts(parts, accounts).await;
        let Extension(client) = client.map_err(|error| Problem::internal(&error))?;
        let checked = accounts.by_address.check(&client.network());
        checked.map_err(|seconds| Problem::new(TOO_MANY_REQUESTS).retry_after(seconds))?;
        Ok(Self(client))
    }
}

impl Accounts {
    async fn current_user(&self, caller: Caller) -> Result<users::UserRecord, Problem> {
        users::by_id(&self.database, caller.user_id).await?.ok_or_else(|| Problem::new(UNAUTHENTICATED))
    }

    /// Returns the user of these credentials, and the hash that the password was verified against. The attempt is
    /// counted before the password is verified, and a hash is computed in every case.
    async fn recognise(
        &self,
        credentials: &Credentials,
        client: ClientAddress,
    ) -> Result<users::UserRecord, Problem> {
        let account = self.lockout.pseudonym(&self.database, &credentials.email).await?;
        let counted = self.lockout.count(&self.database, &account, client.network()).await?;
        let current_user = match Email::parse(&credentials.email) {
            Some(email) => users::by_email(&self.database, &email).await?,
            None => None,
        };
        let hash = current_user.as_ref().map(|current_user| current_user.password_hash.clone());
        let fits = self.passwords.verify(&credentials.password, hash).await?;
        match (fits, counted, current_user) {
            (true, AttemptResult::Allowed, Some(current_user)) => {
                self.lockout.forget(&self.database, &account, client.network()).await?;
                Ok(current_user)
            }
            (_, counted, current_user) => {
                Err(self.refuse(counted, current_user.map(|current_user| current_user.user), &account).await)
            }
        }
    }

    /// Hashes the password again if the parameters of its hash differ from the settings. Returns the user's hash.
    async fn rehash_if_outdated(
        &self,
        current_user: &users::UserRecord,
        password: &Password,
    ) -> Result<String, Problem> {
        let hash = &current_user.password_hash;
        if self.passwords.is_outdated(hash) {
            let renewed = self.passwords.hash(password).await?;
            if users::renew_hash(&self.database, &current_user.user, hash, &renewed).await? {
                return Ok(renewed);
            }
        }
        Ok(hash.clone())
    }

    async fn refuse(&self, counted: AttemptResult, user: Option<User>, account: &Pseudonym) -> Problem {
        let (reason, action) = match counted {
            AttemptResult::Allowed => ("bad_credentials", "login"),
            AttemptResult::LockedOut { just_now: true } => ("locked_out", "lockout"),
            AttemptResult::LockedOut { just_now: false } => ("locked_out", "login"),
        };
        AUTHENTICATION_FAILURES.with_label_values(&[reason]).inc();
        let mut event = Event::new(EventType::Authentication, "sessions", action, EventResult::Failure)
            .with("reason", reason);
        event = match user {
            Some(user) => event.by(user.id, user.role.as_str()),
            None => event.with("unknown_account", account.to_hex()),
        };
        match self.denials.record(event).await {
            Ok(()) => Problem::new(BAD_CREDENTIALS),
            Err(error) => error.into(),
        }
    }
}
