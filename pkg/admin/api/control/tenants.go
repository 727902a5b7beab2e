package control

import (
	"context"
	"net/http"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/api/operation"
	"relayd/pkg/admin/console"
)

type tenantInput struct {
	Name string `path:"name" maxLength:"200" doc:"name of the tenant, percent-encoded"`
}

type tenantAct struct {
	Name string             `path:"name" maxLength:"200" doc:"name of the tenant, percent-encoded"`
	Body *operation.Nothing `doc:"none, or an empty object"`
}

func (in *tenantInput) name() string { return in.Name }

// Tenants is the answer of list-tenants.
type Tenants struct {
	Tenants []console.Tenant `json:"tenants" nullable:"false"`
}

// Findings is the answer of check-tenant.
type Findings struct {
	Findings []console.Finding `json:"findings" nullable:"false"`
}

func (c *control) registerTenants() {
	const one = tenantsPath + "/{name}"
	operation.Add(c.set, operation.Operation{
		Method: "GET", Path: tenantsPath, ID: "list-tenants", Summary: "List tenants",
		Description: "The app registrations in Entra ID that mail is sent by. No secret is ever shown.", Scope: access.Read,
	}, func(ctx context.Context, _ *struct{}) (*operation.Output[Tenants], error) {
		found, err := c.console.Tenants(ctx)
		return &operation.Output[Tenants]{Body: Tenants{list(found)}}, err
	})
	operation.Add(c.set, operation.Operation{
		Method: "POST", Path: tenantsPath, ID: "add-tenant", Summary: "Add a tenant",
		Description: "Adds an app registration, which is in force at once. A secret that is entered here is kept encrypted.",
		Scope:       access.Manage, Status: http.StatusCreated, Errors: []int{http.StatusConflict},
	}, func(ctx context.Context, in *struct{ Body console.TenantInput }) (*operation.Created, error) {
		err := c.done(ctx, "add-tenant", in.Body.Name, c.console.SaveTenant(ctx, "", in.Body))
		return &operation.Created{Location: at(tenantsPath, in.Body.Name)}, err
	})
	operation.Add(c.set, operation.Operation{
		Method: "GET", Path: one, ID: "get-tenant", Summary: "Show one tenant",
		Description: "How an app registration stands, with the redirect URI to enter in Entra.", Scope: access.Read, Errors: notFound(),
	}, func(ctx context.Context, in *tenantInput) (*operation.Output[*console.Tenant], error) {
		found, err := c.console.Tenant(ctx, in.Name)
		return &operation.Output[*console.Tenant]{Body: found}, err
	})
	operation.Add(c.set, operation.Operation{
		Method: "PUT", Path: one, ID: "replace-tenant", Summary: "Change a tenant",
		Description: "Replaces an app registration as a whole; only a secret that is left out stays as it is. One that stands in the " +
			"configuration file can only be changed there.", Scope: access.Manage, Status: http.StatusNoContent, Errors: notFound(http.StatusConflict),
	}, func(ctx context.Context, in *struct {
		Name string `path:"name" maxLength:"200" doc:"name of the tenant, percent-encoded"`
		Body console.TenantInput
	}) (*struct{}, error) {
		return nil, c.done(ctx, "replace-tenant", in.Name, c.console.SaveTenant(ctx, in.Name, in.Body))
	})
	change(c, operation.Operation{
		Method: "DELETE", Path: one, ID: "remove-tenant", Summary: "Remove a tenant",
		Description: "Forgets an app registration and its secret. Refused while senders use it.",
		Scope:       access.Manage, Errors: notFound(http.StatusConflict),
	}, (*tenantInput).name, c.console.RemoveTenant)
	operation.Add(c.set, operation.Operation{
		Method: "POST", Path: one + "/check", ID: "check-tenant", Summary: "Check a tenant",
		Description: "Asks Entra ID whether the registration is there and the credential right. Nothing is changed.", Scope: access.Operate, Errors: notFound(),
	}, func(ctx context.Context, in *tenantAct) (*operation.Output[Findings], error) {
		found, err := c.console.CheckTenant(ctx, in.Name)
		return &operation.Output[Findings]{Body: Findings{list(found)}}, err
	})
}
