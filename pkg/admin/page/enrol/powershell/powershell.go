// Package powershell writes the commands an administrator of Exchange Online pastes into PowerShell. It is pure.
//
// Whatever is filled in stands in single quotes, where PowerShell expands nothing, so no value can become a command.
package powershell

import (
	"strings"
	"unicode"
)

// App is the app registration the commands are about.
type App struct {
	Cloud    string // worldwide, gcc-high, dod or china; empty: worldwide
	TenantID string
	ClientID string
	ObjectID string // of the enterprise application, not of the app registration; empty: the commands look it up
	Name     string // what the service principal is to be called in Exchange Online
}

// Quote returns s as a PowerShell string in single quotes. PowerShell takes typographic single quotes for quotes too
// (about_Quoting_Rules), so those are doubled like the plain one. Control characters and what turns the direction of text or
// cannot be seen is left out: nobody means it, and what is pasted must be what was read.
func Quote(s string) string {
	var b strings.Builder
	b.WriteByte('\'')
	for _, r := range s {
		switch {
		case unicode.IsControl(r), unicode.Is(unicode.Cf, r), r == '\u2028', r == '\u2029', r == unicode.ReplacementChar:
			continue
		case r == '\'', r >= '\u2018' && r <= '\u201b':
			b.WriteRune(r)
		}
		b.WriteRune(r)
	}
	b.WriteByte('\'')
	return b.String()
}

// filter returns an OPATH condition that a property has a value, as a PowerShell string.
func filter(property, value string) string {
	return Quote(property + " -eq " + Quote(value))
}

// Connect opens Exchange Online PowerShell as an administrator.
func Connect(a App) string {
	return lines("Connect-ExchangeOnline" + environment(a.Cloud, exchangeEnvironments))
}

// Principal makes the app known to Exchange Online, and leaves it in $principal. With no object id it asks Microsoft Graph for
// the enterprise application's, since the one of the app registration makes every sign-in fail.
func Principal(a App) string {
	name := a.Name
	if name == "" {
		name = "relayd"
	}
	appID, objectID, prologue := Quote(a.ClientID), Quote(a.ObjectID), ""
	if a.ObjectID == "" {
		prologue = lines(
			"Connect-MgGraph -Scopes 'Application.Read.All' -TenantId "+Quote(a.TenantID)+environment(a.Cloud, graphEnvironments),
			"$app = Get-MgServicePrincipal -Filter "+Quote("appId eq "+Quote(a.ClientID)),
		)
		objectID = "$app.Id"
	}
	return prologue + lines(
		"New-ServicePrincipal -AppId "+appID+" -ObjectId "+objectID+" -DisplayName "+Quote(name),
		"$principal = Get-ServicePrincipal | Where-Object AppId -eq "+appID,
	)
}

// Classic lets the app of $principal send as a mailbox, by the mailbox's own permissions.
func Classic(mailbox string) string {
	return lines(
		"Add-MailboxPermission -Identity "+Quote(mailbox)+" -User $principal.Identity -AccessRights FullAccess",
		"Add-RecipientPermission -Identity "+Quote(mailbox)+" -Trustee $principal.Identity -AccessRights SendAs -Confirm:$false",
	)
}

// RBAC lets the app of $principal send as one mailbox by a role of Exchange Online, without any permission in Entra ID.
func RBAC(a App, mailbox string) string {
	scope := Quote(clip("relayd " + mailbox))
	return lines(
		"New-ManagementScope -Name "+scope+" -RecipientRestrictionFilter "+filter("PrimarySmtpAddress", mailbox),
		"New-ManagementRoleAssignment -Name "+scope+" -Role 'Application SMTP.SendAsApp' -App "+Quote(a.ClientID)+
			" -CustomResourceScope "+scope,
		"Test-ServicePrincipalAuthorization -Identity "+Quote(a.ClientID)+" -Resource "+Quote(mailbox),
	)
}

// SMTPAuth allows a mailbox authenticated SMTP submission, whatever the organisation's switch says, and shows both switches.
func SMTPAuth(mailbox string) string {
	return lines(
		"Set-CASMailbox -Identity "+Quote(mailbox)+" -SmtpClientAuthenticationDisabled $false",
		"Get-CASMailbox -Identity "+Quote(mailbox)+" | Format-List SmtpClientAuthenticationDisabled",
		"Get-TransportConfig | Format-List SmtpClientAuthenticationDisabled",
	)
}

// SendAs lets the mailbox login send as the mailbox from.
func SendAs(from, login string) string {
	return lines("Add-RecipientPermission -Identity " + Quote(from) + " -Trustee " + Quote(login) + " -AccessRights SendAs -Confirm:$false")
}

// maxName is the longest name of a management scope or role assignment, in characters.
const maxName = 64

func clip(s string) string {
	r := []rune(s)
	return string(r[:min(len(r), maxName)])
}

func lines(all ...string) string {
	var out strings.Builder
	for _, l := range all {
		if l != "" {
			out.WriteString(l + "\n")
		}
	}
	return out.String()
}

// The names of the clouds in the two modules; the one for all other organisations needs none.
const (
	exchangeEnvironments = " -ExchangeEnvironmentName "
	graphEnvironments    = " -Environment "
)

func environment(cloud, parameter string) string {
	var exchange, graph string
	switch cloud {
	case "gcc-high":
		exchange, graph = "O365USGovGCCHigh", "USGov"
	case "dod":
		exchange, graph = "O365USGovDoD", "USGovDoD"
	case "china":
		exchange, graph = "O365China", "China"
	default:
		return ""
	}
	if parameter == exchangeEnvironments {
		return parameter + exchange
	}
	return parameter + graph
}
